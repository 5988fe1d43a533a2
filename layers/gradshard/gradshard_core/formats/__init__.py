"""What is stored in the bucket: object names, tensor layouts, element types, JSON records."""
