"""Test vectors of compressed updates, for programs in other languages."""
