"""Writes one HTML page about a run, or about several side by side."""

from big_siglip.commands import report
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(report)
