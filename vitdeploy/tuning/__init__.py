"""Find the fastest setting of a bundle on this machine that keeps the accuracy, with evidence."""
