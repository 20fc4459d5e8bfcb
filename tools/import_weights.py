"""Makes a model folder of published SigLIP or SigLIP 2 weights."""

from big_siglip.commands import import_weights
from big_siglip.commands.program import run

if __name__ == "__main__":
  run(import_weights)
