"""Families of Vision Transformers: their differences from ViT, configuration keys and weight names."""
