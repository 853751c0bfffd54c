"""Measure latency and throughput, each backend in its own process."""
