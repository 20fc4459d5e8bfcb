"""The project's own data sets, as TFDS builders that need no TensorFlow."""
