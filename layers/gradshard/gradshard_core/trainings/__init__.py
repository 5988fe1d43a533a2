"""The functions of the state machine that runs trainings, one module each, and what they cost."""
