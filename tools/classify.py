"""Scores images against labels of your choice."""

from big_siglip.commands import classify
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(classify)
