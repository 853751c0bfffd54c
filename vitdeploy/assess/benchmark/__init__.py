"""Measure latency and throughput, each backend in a process of its own."""
