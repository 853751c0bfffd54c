"""What runs on a GPU machine, what travels there, and the tables of its results."""
