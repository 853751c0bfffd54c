"""Measure accuracy on labelled images."""
