"""Convert other libraries' checkpoints to equivalent Hugging Face checkpoints."""
