"""Looks up what token ids stand for.

Shape letters: B batch, V vocabulary, D width.
"""

from flax import linen as nn
import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


class TokenEmbedding(nn.Embed):
  """A learned vector of each token; B... -> B...D.

  Where devices share the table by columns (`sharding.PARAMETER_AXES`) each
  looks up its columns of all tokens of those that share it. So the gradient is
  made of columns. Left to itself XLA makes one of the whole table on every
  device of a large mesh, and adds these up.

  Attributes:
    sharding: of the batch; None: as the compiler likes.
  """

  embedding_init: nn.initializers.Initializer = (
    nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
  )
  sharding: NamedSharding | None = None

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns the vectors of ids, 0 <= id < V."""
    x = super().__call__(inputs)
    if self.sharding is None or inputs.shape[0] == 1:
      return x  # Parameters are initialised on a batch of one.
    mesh = self.sharding.mesh
    shares = mesh.shape["fsdp"] * mesh.shape["tensor"]
    if shares > 1 and self.features % shares == 0:
      others = (None,) * (inputs.ndim - 1)
      columns = P("data", *others, ("fsdp", "tensor"))
      x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, columns))
    return jax.lax.with_sharding_constraint(x, self.sharding)
