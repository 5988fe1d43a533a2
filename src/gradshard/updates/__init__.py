"""Updates as bytes: tensors, compression, conversion, masks, uploads and downloads."""
