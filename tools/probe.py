"""Teaches a classifier on the embeddings of labelled images, and keeps it."""

from big_siglip.commands import probe
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(probe)
