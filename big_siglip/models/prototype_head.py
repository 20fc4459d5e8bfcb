"""The head of self-distillation: from a tower's vector to prototypes.

DINOHead of facebookresearch/dino, vision_transformer.py (arXiv:2104.14294,
appendix C), which iBOT and DINOv2 took over.

Shape letters: N whatever comes before the features, D width of the tower, d of
the bottleneck, K prototypes.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp


class PrototypeHead(nn.Module):
  """Three layers, a vector of length 1, and prototypes; ND -> (Nd, dK).

  Attributes:
    hidden: units of the first two layers, each with a GELU.
    bottleneck: d.
    prototypes: K.
    dtype: of the computation.
  """

  hidden: int
  bottleneck: int
  prototypes: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns vectors, and the prototypes that they are compared with.

    Both are float32 of length 1. The prototypes are the directions of a
    parameter `prototypes`: DINO's last layer with weight normalisation, whose
    gains are fixed at 1. Its name keeps it out of the weight decay, which would
    change nothing but the rate at which it turns.
    """
    for name, width in (
      ("first", self.hidden),
      ("second", self.hidden),
      ("bottleneck", self.bottleneck),
    ):
      # What torch calls a truncated normal there is cut off at 100 deviations.
      x = nn.Dense(
        width,
        dtype=self.dtype,
        kernel_init=nn.initializers.normal(0.02),
        name=name,
      )(x)
      if name != "bottleneck":
        x = nn.gelu(x, approximate=False)
    directions = self.param(
      "prototypes",
      nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
      (self.bottleneck, self.prototypes),
    )
    return unit(x.astype(jnp.float32), -1), unit(directions, 0)


def unit(x: jax.Array, axis: int) -> jax.Array:
  """Returns x / max(|x|, 1e-12); a zero has no gradient, not NaN."""
  square = (x**2).sum(axis=axis, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
