"""Embeds images or texts, millions of them, into Parquet files."""

from big_siglip.commands import embed
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(embed)
