"""What a round is asked for, what it will do, and what that takes in time, memory and money."""
