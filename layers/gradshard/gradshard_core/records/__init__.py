"""The records of rounds and models in the bucket, as functions and clients read them."""
