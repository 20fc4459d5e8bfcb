"""Prepares WIT, tar shards or Parquet as a TFDS data set."""

from big_siglip.commands import prepare
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(prepare)
