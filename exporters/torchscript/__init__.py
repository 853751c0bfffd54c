"""Export the reference to TorchScript."""
