"""Robust rules: by element, by weight, and the inner products of updates."""
