"""SigLIP 2 at another resolution: the last 5 % once more, at 384 pixels.

big-siglip train --config=siglip2/hires --workdir=runs/siglip2/hires \
  --config.data.path=PAIRS --config.init.path=runs/siglip2/distil/checkpoints/N

N is the checkpoint at 95 % of the schedule (1,159,667 of B's 1,220,703 steps,
or the next that was kept). Positions are resampled, all losses go on
(arXiv:2502.14786, section 2.4.1).
"""

from ml_collections import ConfigDict

from configs.siglip2 import distil


def get_config() -> ConfigDict:
  """Returns the experiment."""
  c = distil.get_config()
  c.init.path = "runs/siglip2/distil"
  c.model.image.image_size = 384
  return c
