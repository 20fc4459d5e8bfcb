"""The models that are timed, as configs of ours; loads no JAX."""

from ml_collections import ConfigDict

from big_siglip import command_line
from big_siglip.schema import sizes

# Of configs/NAME.py. The step is the recipe's own, with AdamW, which plain
# programs have: bfloat16, blocks computed again for the gradient and compiled
# once, gradients clipped, all metrics.
_OVERRIDES = {
  "mesh.fsdp": 1,
  "total_steps": 1_000,
  "optimizer.name": "adamw",
  "optimizer.mu_dtype": "float32",
  "model.remat": "full",
  "model.scan": True,
}
# Large enough for every line to run, on a CPU too.
_TINY = {
  "model.image.size": "mu/16",
  "model.image.image_size": 64,
  "model.text.size": "mu",
  "model.text.vocab_size": 64,
  "model.text.length": 16,
}


def config(
  name: str, batch_size: int, tiny: bool, changes: dict[str, str]
) -> ConfigDict:
  """Returns the config of one timing.

  Args:
    name: one of `parts.NAMES`.
    batch_size: examples a step.
    tiny: a model of two blocks in its place.
    changes: {field: value} on top, as on a command line.

  Raises:
    UserError: a change is wrong.
  """
  fields = {**_OVERRIDES, "batch_size": batch_size}
  if tiny:
    fields |= _TINY
  arguments = [f"--config.{field}={value}" for field, value in fields.items()]
  arguments += [f"--config.{field}={value}" for field, value in changes.items()]
  made = command_line.load_config(name, arguments)
  if "model.slice_tokens" not in changes:
    # Slices fit a TPU's fast memory, of which a GPU has nothing like it.
    made.model.slice_tokens = None
  return made


def title(model: ConfigDict) -> str:
  """Returns what a model is called: "B/16"."""
  return model.image.size


def towers(model: ConfigDict) -> tuple[sizes.TowerSize, sizes.TowerSize]:
  """Returns the dimensions of the image tower, and of the text tower."""
  return sizes.resolve_image(model.image), sizes.resolve_text(model.text)
