"""Run OpenVINO and ONNX artifacts with OpenVINO, on the CPU."""
