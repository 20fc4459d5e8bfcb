"""How fast training is on a GPU: see `python -m benchmarks.gpu --help`."""
