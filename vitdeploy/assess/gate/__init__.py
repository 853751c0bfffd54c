"""Pass or fail: hold artifacts to rules and to a baseline."""
