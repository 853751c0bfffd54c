"""Pass or fail: check artifacts against rules and a baseline."""
