"""Checkpoints of other libraries, converted to the equivalent Hugging Face checkpoints."""
