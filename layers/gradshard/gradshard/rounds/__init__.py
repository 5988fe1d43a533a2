"""The life of a round: one module per function of the state machine, named like it."""
