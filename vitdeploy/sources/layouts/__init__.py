"""Convert checkpoints of other libraries to the equivalent Hugging Face checkpoints."""
