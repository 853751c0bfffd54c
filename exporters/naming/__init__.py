"""Names of a graph's nodes that people read: the parts of a vision transformer, and its layers."""
