"""Read timm's checkpoints: the same numbers under transformers' names, or under our own."""
