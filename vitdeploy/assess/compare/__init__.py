"""Compare artifacts with the reference on the same images."""
