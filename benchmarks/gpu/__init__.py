"""Scripts for a GPU machine, the bundle that travels there, and the tables of its results."""
