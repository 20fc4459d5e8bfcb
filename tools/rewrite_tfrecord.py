"""Rewrites a prepared TFDS data set from TFRecord to ArrayRecord."""

from big_siglip.commands import rewrite_tfrecord
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(rewrite_tfrecord)
