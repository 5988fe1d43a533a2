"""Polling, atomic files, parallel jobs, text and units: used anywhere, about nothing of gradshard."""
