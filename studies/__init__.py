"""What the papers found, tried at the size of a laptop (docs/studies.md)."""
