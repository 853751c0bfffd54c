"""Find the layers that make an artifact differ: layer comparison, bisection, sensitivity."""
