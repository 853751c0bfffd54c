"""Serve bundles: files for model servers, and what an application that embeds a predictor needs."""
