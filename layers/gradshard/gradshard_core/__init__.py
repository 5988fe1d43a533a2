"""What the functions run, and clients share with them: the Lambda layer holds this package."""
