"""The code of the functions, which clients use, too. The Lambda layer holds this package."""
