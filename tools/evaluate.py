"""Evaluates a checkpoint as its run did, or otherwise; or a run."""

from big_siglip.commands import evaluate
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(evaluate)
