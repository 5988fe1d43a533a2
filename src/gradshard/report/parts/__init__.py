"""The parts of a round's section: clients, tasks, layers, cost and settings."""
