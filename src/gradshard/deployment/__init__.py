"""Deploy the application to AWS, from its sources."""
