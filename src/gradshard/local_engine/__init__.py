"""The local engine: it stands in for AWS, and keeps its application and objects on this machine."""
