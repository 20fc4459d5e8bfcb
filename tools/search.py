"""Finds the images or texts nearest to a query, among those of embed.py."""

from big_siglip.commands import search
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(search)
