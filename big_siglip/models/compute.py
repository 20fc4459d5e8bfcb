"""How a tower is computed, apart from what it computes."""

import dataclasses
from typing import Any

from jax.sharding import NamedSharding


@dataclasses.dataclass(frozen=True)
class Compute:
  """What every part of a model is told; none of it changes a parameter's name.

  Attributes:
    dtype: of the computation; parameters are float32.
    backend: of the attention; name in `words.ATTENTIONS`.
    remat: name in `remat.REMAT_POLICIES`.
    scan: compile one block and loop over it, with parameters stacked along a
      leading axis: compile time does not grow with depth.
    sharding: of activations, whose first dimension is the batch; None: as the
      compiler likes.
    slice_tokens: that go through a block at once on a device; what has more
      goes in slices, one after the other. None, or without `sharding`: all.
    keep_blocks: the last so many of a tower keep all activations, whatever
      `remat` says; they stand behind the loop of `scan`.
    apart: whether there is another pass of the same shape. What a loop keeps
      is then of another shape: of one shape XLA writes the zeros that it
      starts from, which otherwise it leaves out.
    joined: whether "short" gets query, key and value of one product; a tower
      says so itself.
  """

  dtype: str = "float32"
  backend: str = "auto"
  remat: str = "none"
  scan: bool = False
  sharding: NamedSharding | None = None
  slice_tokens: int | None = None
  keep_blocks: int = 0
  apart: bool = False
  joined: bool = False

  @classmethod
  def of(cls, model: Any, sharding: NamedSharding | None) -> "Compute":
    """Returns how `config.model` has its parts computed.

    Args:
      model: the section.
      sharding: see the attribute.
    """
    return cls(
      dtype=model.dtype,
      backend=model.attention,
      remat=model.remat,
      keep_blocks=model.keep_blocks,
      scan=model.scan,
      sharding=sharding,
      slice_tokens=model.slice_tokens,
    )

  def on(self, batch: int) -> NamedSharding | None:
    """Returns the sharding for a batch; parameters are initialised on one."""
    return None if batch == 1 else self.sharding
