"""A training run's folder, its processes, and what it tells as it goes."""
