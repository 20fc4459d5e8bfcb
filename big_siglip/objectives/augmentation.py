"""Colours and sharpness of views, changed on the device.

What DINO does to its views (facebookresearch/dino, main_dino.py,
DataAugmentationDINO): colour jitter, grey, blur. All is drawn from an example's
key, so slices and devices change none of it. In torchvision's words, on floats;
channels come first, since a TPU fills a last axis of 3 up to 128.

Shape letters: b examples, n views of each, s pixels along a side.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

_GREY = (0.2989, 0.587, 0.114)  # Of red, green and blue: torchvision's.
_RADIUS = 4  # Pixels: nine taps, as DINOv2's GaussianBlur(kernel_size=9).
_SIGMAS = 0.1, 2.0  # Pixels.


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """What is done to a view, and how often; 0: never, and nothing is computed.

  Attributes:
    jitter: share of views whose colours are changed.
    strength: of that: brightness, contrast, saturation and hue. The first three
      are multiplied by 1 - strength ... 1 + strength, and to the last up to
      its strength of a turn is added, in an order that is drawn.
    grey: share of views without colours.
    blur: share of views that are blurred, by a Gaussian of 0.1 ... 2 pixels.
  """

  jitter: float = 0.8
  strength: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
  grey: float = 0.2
  blur: float = 0.5

  def __call__(self, views: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns the views, changed; bnss3 -> bnss3 float32 in [0, 255].

    Args:
      views: uint8, or float in [0, 255].
      keys: [b], one of each example.
    """
    keys = jax.vmap(lambda key: jax.random.split(key, views.shape[1]))(keys)
    x = jnp.moveaxis(views, -1, 2).astype(jnp.float32) / 255
    x = jax.vmap(jax.vmap(self._change))(x, keys)
    return 255 * jnp.moveaxis(x, 2, -1)

  def _change(self, x: jax.Array, key: jax.Array) -> jax.Array:
    """Changes one view; 3ss -> 3ss in [0, 1]."""
    jitter, grey, blur = jax.random.split(key, 3)
    if self.jitter:
      on, own = jax.random.split(jitter)
      changed = _jitter(x, own, self.strength)
      x = jnp.where(jax.random.bernoulli(on, self.jitter), changed, x)
    if self.grey:
      on = jax.random.bernoulli(grey, self.grey)
      x = jnp.where(on, jnp.broadcast_to(_grey(x), x.shape), x)
    if self.blur:
      on, own = jax.random.split(blur)
      low, high = _SIGMAS
      sigma = jax.random.uniform(own, (), minval=low, maxval=high)
      taps = _taps(sigma)
      still = jnp.arange(len(taps)) == _RADIUS
      x = _blur(x, jnp.where(jax.random.bernoulli(on, self.blur), taps, still))
    return x


def _jitter(x, key, strength):
  """Changes brightness, contrast, saturation and hue in an order of its own."""
  order, key = jax.random.split(key)
  order = jax.random.permutation(order, 4)
  draws = jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)
  changes = (_brightness, _contrast, _saturation, _hue)
  branches = [
    functools.partial(change, by=most * draw)
    for change, most, draw in zip(changes, strength, draws, strict=True)
  ]
  # A loop, so that a compiler sees them once.
  return jax.lax.scan(
    lambda x, which: (jax.lax.switch(which, branches, x), None), x, order
  )[0]


def _brightness(x, by):
  return jnp.clip((1 + by) * x, 0, 1)


def _contrast(x, by):
  return _blend(x, _grey(x).mean(keepdims=True), by)


def _saturation(x, by):
  return _blend(x, _grey(x), by)


def _blend(x, other, by):
  return jnp.clip((1 + by) * x - by * other, 0, 1)


def _grey(x):
  """Returns 1ss of 3ss."""
  return sum(share * x[i : i + 1] for i, share in enumerate(_GREY))


def _hue(x, by):
  """Turns the hue by a share of the circle; saturation and value stay."""
  red, green, blue = x
  # Pixel by pixel, as all that follows: a reduction would be a pass of its own.
  value = jnp.maximum(jnp.maximum(red, green), blue)
  low = jnp.minimum(jnp.minimum(red, green), blue)
  chroma = value - low
  divisor = jnp.where(chroma > 0, chroma, 1)
  # Which is the largest, without asking for equality: what a compiler computes
  # twice may differ in its last bit. Where two are nearly so, both ways agree.
  sixth = jnp.where(
    (red >= green) & (red >= blue),
    (green - blue) / divisor,
    jnp.where(
      green >= blue, 2 + (blue - red) / divisor, 4 + (red - green) / divisor
    ),
  )
  sixth += 6 * by
  # Of each channel: value less chroma times how far away its own hue is.
  far = [jnp.mod(start + sixth, 6.0) for start in (5.0, 3.0, 1.0)]
  return jnp.stack(
    [value - chroma * jnp.clip(jnp.minimum(f, 4 - f), 0, 1) for f in far]
  )


def _taps(sigma):
  """Returns a Gaussian's weights, [2 radius + 1]."""
  at = jnp.arange(-_RADIUS, _RADIUS + 1, dtype=jnp.float32)
  weights = jnp.exp(-0.5 * (at / sigma) ** 2)
  return weights / weights.sum()


def _blur(x, taps):
  """Filters rows, then columns; edges are mirrored.

  As two products: nine shifted sums each way are six times as slow on a TPU.
  """
  rows, columns = (_filter(taps, size) for size in x.shape[1:])
  product = functools.partial(jnp.einsum, precision="highest")
  x = product("ij,cjk->cik", rows, x)
  return product("lk,cik->cil", columns, x)


def _filter(taps, size):
  """Returns what a line of pixels is multiplied by; [size, size] float32."""
  at = np.pad(np.arange(size), _RADIUS, mode="reflect")
  at = np.stack([at[i : i + size] for i in range(len(taps))])
  hits = np.float32(at[..., None] == np.arange(size))  # [taps, size, size]
  return jnp.einsum("t,tij->ij", taps, hits, precision="highest")
