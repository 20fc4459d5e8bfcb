"""Compares two evaluations of the same images, and lists what changed."""

from big_siglip.commands import compare
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(compare)
