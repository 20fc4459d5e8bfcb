"""Writes captions of images, boxes of phrases, and phrases of boxes."""

from big_siglip.commands import caption
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(caption)
