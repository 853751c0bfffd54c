"""Graphs that compute in 8 bits: a scheme a file, and the ranges of activations that were seen on images."""
