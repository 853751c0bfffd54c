"""Model repositories of Triton Inference Server: the configuration and the files of a model."""
