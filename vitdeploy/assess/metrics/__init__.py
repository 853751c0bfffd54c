"""Metrics of outputs, accuracy and latency, with their statistics and statuses."""
