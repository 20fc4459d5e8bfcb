"""Libraries that a run needs for one field of its config alone."""

from ml_collections import ConfigDict

from big_siglip import extras
from big_siglip.data import fast_images


def check(config: ConfigDict) -> None:
  """Raises a `UserError` if one is not there, before anything is begun.

  Those that data sets need are looked for when these are opened.
  """
  if config.data.decoder == "fast":
    fast_images.opencv()
  if config.wandb:
    with extras.needed_by("config.wandb=True"):
      import wandb  # noqa: F401
