"""A page in the browser that tries a served model: an image in, labels and latency out."""
