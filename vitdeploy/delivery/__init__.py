"""Deliver bundles: pack artifacts for production, push bundles to the Hugging Face Hub, load them from there."""
