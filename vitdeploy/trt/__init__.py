"""What TensorRT's exporters and runtimes share: options, differences between its libraries, GPUs."""
