"""Checkpoints evaluated apart from their training."""
