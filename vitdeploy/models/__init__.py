"""The reference model in torch: configuration, weights and the network."""
