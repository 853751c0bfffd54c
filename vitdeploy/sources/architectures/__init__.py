"""Weights without a configuration: the file, and what timm, torchvision or OpenCLIP say of its architecture's name."""
