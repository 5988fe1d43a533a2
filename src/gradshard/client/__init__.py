"""The client library: federations, rounds, trainings and models, and taking part in them."""
