"""The reference Vision Transformer in torch, and the checkpoints that it loads."""
