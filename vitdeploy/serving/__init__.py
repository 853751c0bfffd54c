"""Write bundles in the formats of model servers."""
