"""Draws what patches know: components, labels, matches, attention."""

from big_siglip.commands import dense
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(dense)
