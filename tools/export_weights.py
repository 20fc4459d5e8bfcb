"""Writes a trained model in another project's format."""

from big_siglip.commands import export_weights
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(export_weights)
