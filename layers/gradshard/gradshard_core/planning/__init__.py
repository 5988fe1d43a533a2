"""The options of a round, its plan, and the time, memory and money that the plan takes."""
