"""Trained models: found, loaded, started from, served."""
