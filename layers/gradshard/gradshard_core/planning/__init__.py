"""The plan of a round: its groups, weights, tasks and outputs."""
