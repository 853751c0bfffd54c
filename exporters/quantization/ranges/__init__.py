"""Measure the ranges of activations on calibration images."""
