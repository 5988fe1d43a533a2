"""The limits of rounds and trainings: AWS's, and gradshard's own."""
