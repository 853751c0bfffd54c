"""Run an ONNX artifact with ONNX Runtime, without torch; on a GPU also through its TensorRT provider."""
