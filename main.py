"""Trains a SigLIP, and resumes where it stopped."""

from big_siglip.commands import train
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(train)
