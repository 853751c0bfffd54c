"""Summarize bundles and the graphs in their artifacts."""
