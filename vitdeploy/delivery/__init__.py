"""Deliver bundles: pack the parts that production needs, push them to the Hugging Face Hub, load them from there."""
