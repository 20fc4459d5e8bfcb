"""Serves a page for a trained model: images against labels, and search."""

from big_siglip.commands import serve
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(serve)
