"""What big-siglip, main.py and tools/ run: a module for each command."""
