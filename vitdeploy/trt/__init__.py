"""Shared by TensorRT's exporters and runtimes: options, library differences, GPUs."""
