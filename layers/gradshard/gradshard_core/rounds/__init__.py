"""The functions of the state machine: one module each, and what several of them do."""
