"""Verification of a round's result: recompute byte ranges of it, and compare."""
