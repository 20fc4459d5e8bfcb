"""What a config may say: fields, their types and ranges."""
