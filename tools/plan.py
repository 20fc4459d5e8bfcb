"""Says what a run will need before anyone rents the chips."""

from big_siglip.commands import plan
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(plan)
