"""Which artifact runs on which backend, and the runs of the reference."""
