"""--max_patches, a flag of all commands that show images to a model."""

from typing import Any

from absl import flags

from big_siglip.errors import naming

MAX_PATCHES = flags.DEFINE_integer(
  "max_patches",
  None,
  "Patches of an image, at most, for a model that keeps its shape (NaFlex).",
)


def load(checkpoint: str, *, max_patches: int | None = None, **options: Any):
  """Returns `big_siglip.load` of a checkpoint, with as many patches as asked.

  Args:
    checkpoint: what it takes.
    max_patches: where the flag is not given.
    **options: of `big_siglip.load`.

  Raises:
    UserError: see there.
  """
  import big_siglip

  if MAX_PATCHES.value is not None:
    max_patches = MAX_PATCHES.value
  with naming({"max_patches": "--max_patches"}):
    return big_siglip.load(checkpoint, max_patches=max_patches, **options)
