"""The formats of the bucket: object names, tensor layouts, element types, JSON records."""
