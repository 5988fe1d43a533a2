"""Codecs: how elements of a compressed update are stored; one module each."""
