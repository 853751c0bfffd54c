"""The network's layers: embeddings, positions, attention, MLPs and heads."""
