"""Other pipelines, run by their own Python: see benchmarks/data.py."""
