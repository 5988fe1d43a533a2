"""Access to S3: the store, the tasks' small client, range streams, signatures."""
