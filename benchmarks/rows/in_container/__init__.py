"""Functions that only the benchmark deploys."""
