"""Access to S3: the store (boto3), the tasks' small client, range streams, signatures."""
