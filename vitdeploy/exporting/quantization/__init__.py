"""Measure activations and quantized graphs on calibration images: ranges, candidates, accuracy targets."""
