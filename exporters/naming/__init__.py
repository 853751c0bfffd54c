"""Readable names of a graph's nodes: the parts of a vision transformer, and its layers."""
