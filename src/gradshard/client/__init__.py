"""The client library: federations, rounds, models, tickets, uploads and downloads."""
