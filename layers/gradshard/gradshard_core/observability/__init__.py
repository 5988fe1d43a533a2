"""Log fields, metrics and memory of the functions."""
