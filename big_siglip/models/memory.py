"""Whether a device can hold what an image tower makes of one image."""

from typing import Any

import jax
import jax.numpy as jnp

from big_siglip import platforms
from big_siglip.errors import UserError
from big_siglip.schema import sizes


def check(
  config: Any, said: str, patches: int, at_once: int, positions: int = 0
) -> None:
  """Refuses an image that cannot be seen, before a device is asked to.

  What is counted is less than a pass takes: pixels and the patches that come
  out, float32; a block's input, output and hidden units of the patches that the
  tower sees at once; their logits where plain products write them.

  Args:
    config: `config.model`.
    said: what asked for it, such as "size=4096".
    patches: of the whole image.
    at_once: how many the tower sees at once; of a window fewer than all.
    positions: of the trained grid, where they are resampled by a matrix.

  Raises:
    UserError: no device that is here holds so much.
  """
  there = platforms.device_bytes(jax.local_devices()[0])
  tower = sizes.resolve_image(config.image)
  number = jnp.dtype(config.dtype).itemsize
  pixels = 3 * (tower.patch_size or 1) ** 2
  needed = 4 * patches * (pixels + tower.width + positions)
  needed += number * at_once * (2 * tower.width + tower.mlp_dim)
  if jax.default_backend() == "cpu":
    needed += number * tower.num_heads * at_once**2
  if there is not None and needed > there:
    raise UserError(
      f"{said}: an image of {patches:,} patches takes {needed / 2**30:,.0f} "
      f"GiB of memory at the least, and a device has {there / 2**30:,.1f} GiB"
    )
