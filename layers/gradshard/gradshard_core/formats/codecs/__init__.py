"""Codecs: ways to store the elements of a compressed update; one module each."""
