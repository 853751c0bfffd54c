"""Time settings in turns until the slower ones are known, and decide among the fastest."""
