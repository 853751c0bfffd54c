"""Quantize ONNX graphs to int8 and fp8."""
