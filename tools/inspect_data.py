"""Shows what a config's model will see of its data, and how fast it comes."""

from big_siglip.commands import inspect_data
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(inspect_data)
