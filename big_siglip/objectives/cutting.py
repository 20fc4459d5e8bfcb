"""Small crops of a large one, cut on the device.

They cost the host no time and the link no bytes; what is finer than the pixels
of the large crop they do not have.

Shape letters: b examples, n crops of each, s pixels along a side, S of the
large one.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

_MAX_ASPECT = 4 / 3  # Longer by shorter side: torchvision's.


@dataclasses.dataclass(frozen=True)
class Cut:
  """Resizes random parts of images to squares, as `data.views.Crops` does.

  Pillow's bilinear filter with antialiasing, as two products.

  Attributes:
    count: n.
    size: s.
    area: the least and the largest share of the image's area.
    flip: mirror every other crop.
  """

  count: int
  size: int
  area: tuple[float, float]
  flip: bool

  def __call__(self, images: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns the crops; bSS3 -> bnss3 float32, as large as the numbers were.

    Args:
      images: uint8 or float.
      keys: [b], one of each example.
    """
    keys = jax.vmap(lambda key: jax.random.split(key, self.count))(keys)
    boxes, mirrored = jax.vmap(jax.vmap(self.draw))(keys)
    side = images.shape[1]
    rows = _weights(boxes[..., 1], boxes[..., 3], self.size, side)
    columns = _weights(boxes[..., 0], boxes[..., 2], self.size, side)
    columns = jnp.where(
      mirrored[..., None, None], jnp.flip(columns, axis=2), columns
    )
    # Channels first: a TPU fills a last axis of 3 up to 128.
    x = jnp.moveaxis(images, -1, 1).astype(jnp.float32)
    x = jnp.einsum("bniy,bcyx->bncix", rows, x, precision="highest")
    x = jnp.einsum("bnjx,bncix->bncij", columns, x, precision="highest")
    return jnp.moveaxis(x, 2, -1)

  def draw(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns left, top, right, bottom in [0, 1], and whether mirrored."""
    shape, place, mirror = jax.random.split(key, 3)
    share, aspect = jax.random.uniform(shape, (2,))
    least, most = self.area
    share = least + (most - least) * share
    aspect = jnp.exp((2 * aspect - 1) * math.log(_MAX_ASPECT))
    sides = jnp.sqrt(jnp.stack([share * aspect, share / aspect]))
    sides = jnp.minimum(sides, 1)
    start = jax.random.uniform(place, (2,)) * (1 - sides)
    mirrored = jax.random.bernoulli(mirror, 0.5 if self.flip else 0.0)
    return jnp.concatenate([start, start + sides]), mirrored


def _weights(
  start: jax.Array, stop: jax.Array, size: int, side: int
) -> jax.Array:
  """Returns what each new pixel takes of each old one; bn -> bnsS."""
  start, length = side * start[..., None], side * (stop - start)[..., None]
  new = jnp.arange(size, dtype=jnp.float32).reshape(1, 1, -1) + 0.5
  centre = start + new * length / size - 0.5
  support = jnp.maximum(length / size, 1)[..., None]
  old = jnp.arange(side, dtype=jnp.float32).reshape(1, 1, 1, -1)
  found = jnp.maximum(0, 1 - jnp.abs(old - centre[..., None]) / support)
  return found / found.sum(axis=-1, keepdims=True)
