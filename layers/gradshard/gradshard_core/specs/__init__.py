"""The options of rounds and trainings: declared once, parsed and checked."""
