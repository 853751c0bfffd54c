"""Embed a predictor in an application: micro-batches, asyncio, and hot reload of a bundle."""
