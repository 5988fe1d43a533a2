"""Tickets: a client's part in a round or a training, as presigned URLs."""
