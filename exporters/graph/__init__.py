"""Export the reference to ONNX: trace, layers, passes, precision and the file."""
