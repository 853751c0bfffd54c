"""Summarize bundles and their artifacts' graphs."""
