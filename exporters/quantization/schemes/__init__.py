"""Quantization schemes: which nodes, number formats and operators each target takes."""
