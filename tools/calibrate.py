"""Fits scale and bias of the logits to labelled images, and keeps them."""

from big_siglip.commands import calibrate
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(calibrate)
