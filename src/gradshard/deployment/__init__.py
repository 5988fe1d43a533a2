"""Deploy the application, to AWS or to the local engine."""
