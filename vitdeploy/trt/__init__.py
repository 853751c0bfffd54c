"""Shared by TensorRT's exporters and runtimes: options, differences between its libraries, GPUs."""
