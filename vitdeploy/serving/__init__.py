"""Write bundles in the form that model servers load."""
