"""Polling, atomic files, parallel jobs and text: nothing here is about learning."""
