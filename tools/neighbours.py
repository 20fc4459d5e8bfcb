"""Finds near-duplicates in a library of images: pairs and groups of them."""

from big_siglip.commands import neighbours
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(neighbours)
