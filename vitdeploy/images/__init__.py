"""From image files to the model's input: decoding, pixel limits and the image processor."""
