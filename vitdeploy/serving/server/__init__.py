"""A Triton Inference Server process with one bundle: find, start, wait until ready, reload, drain."""
