"""Masked updates: fixed-point numbers in a ring, key streams, sealed seeds."""
