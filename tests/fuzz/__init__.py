"""Bad inputs, generated from a seed: each is refused in one line with the right exit code, or does no harm."""
