"""Quantization schemes: nodes, number formats and operators of each target."""
