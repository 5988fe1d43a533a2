"""Access to S3: the store (botocore), the tasks' small client, range streams, signatures."""
