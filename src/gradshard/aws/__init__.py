"""AWS by boto3, for the client library: clients, errors, and a bucket."""
