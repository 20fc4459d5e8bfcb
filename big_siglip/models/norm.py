"""LayerNorm whose statistics recomputation may keep.

Shape letters: D width.
"""

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

EPSILON = 1e-6


class Norm(nn.Module):
  """LayerNorm with epsilon 1e-6 and statistics in float32; ...D -> ...D.

  It computes what nn.LayerNorm does. To recomputation the mean and the variance
  of each row are known as "moments": computing them again takes a TPU a pass
  over the row, and they are two numbers of D.

  Attributes:
    dtype: of the result.
  """

  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalizes the last axis."""
    width = x.shape[-1:]
    scale = self.param("scale", nn.initializers.ones, width)
    bias = self.param("bias", nn.initializers.zeros, width)
    scale, bias = (
      p.reshape((1,) * (x.ndim - 1) + width) for p in (scale, bias)
    )
    x = x.astype(jnp.float32)
    mean, square = x.mean(axis=-1), (x * x).mean(axis=-1)
    variance = jnp.maximum(square - mean * mean, 0)
    mean, variance = checkpoint_name((mean, variance), "moments")
    inverse = jax.lax.rsqrt(variance + EPSILON)[..., None]
    x = (x - mean[..., None]) * (inverse * scale) + bias
    return x.astype(self.dtype)


def layer_norm(dtype: str, name: str) -> nn.Module:
  """Returns `Norm`, or in float32 linen's, which a CPU runs a sixth faster."""
  if dtype == "float32":
    return nn.LayerNorm(epsilon=EPSILON, dtype=dtype, name=name)
  return Norm(dtype, name=name)
