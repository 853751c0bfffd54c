"""Run a bundle on many machines: columns in, columns out, on Ray Data, Ray Serve, Daft and Spark."""
