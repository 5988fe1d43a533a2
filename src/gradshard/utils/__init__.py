"""Polling, atomic files, parallel jobs, text and units: nothing here is about learning."""
