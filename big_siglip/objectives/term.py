"""A summand of the loss: what it looks at, what it adds, what it carries.

Shape letters: B examples of the global batch, b of one slice, L tokens, E
embedding.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
import optax

from big_siglip.models.slices import slice_count
from big_siglip.models.towers import image_of as image_of
from big_siglip.models.towers import Look, Seen
from big_siglip.sharding import BATCH_AXES, batch_devices, Slices

Batch = Mapping[str, jax.Array]
Metrics = Mapping[str, jax.Array]
Embeddings = tuple[jax.Array | None, jax.Array | None]  # Images', texts'; BE.


class Slice(NamedTuple):
  """What a term sees of b examples.

  Attributes:
    params: of the model, and of each term with some under the term's name.
    carry: the term's own, from the step before; no gradient flows through it.
    batch: the examples' arrays, [b, ...] each.
    seen: what the model sees of them; see also `Alone`.
    look: sees other things, or with other parameters, such as a teacher's.
    keys: [b] random keys, one a row. They depend on seed, step, term and the
      row of the global batch alone, so slices and devices change no draw.
  """

  params: Any
  carry: Any
  batch: Batch
  seen: Seen
  look: Look
  keys: jax.Array


@dataclasses.dataclass(frozen=True)
class Carried:
  """What goes from step to step without a gradient: a teacher, a centre.

  Attributes:
    init: parameters -> what the first step gets.
    advance: (what the step got, the parameters after it, the means over the
      global batch of what `Term.each` observed) -> what the next one gets.
  """

  init: Callable[[Any], Any]
  advance: Callable[[Any, Any, Metrics], Any]


@dataclasses.dataclass(frozen=True)
class Alone:
  """How a term is taken back by itself.

  It asks for no `Slice.seen` but what it names; masks are there, too.

  Attributes:
    prepare: b examples -> what `losses` look at, arrays without a gradient.
    losses: (b examples, what was prepared) -> what `Term.each` returns; their
      sum and all that they observe are that of `each`. They are looked at, and
      taken back, one after the other.
    sections: names of the parameters to which there is a gradient, where they
      are there; others are seen, too.
    mesh: the devices.
    limit: examples of a device that are looked at together.
    seen: names of what it asks for of `Slice.seen`, to which there is a
      gradient as well.
  """

  prepare: Callable[[Slice], Any]
  losses: tuple[Callable[[Slice, Any], tuple[jax.Array, Metrics]], ...]
  sections: tuple[str, ...]
  mesh: Mesh
  limit: int
  seen: tuple[str, ...] = ()

  def slices(self, examples: int) -> Slices | None:
    """Returns how a part of so many is cut; None: not at all."""
    rows = examples // batch_devices(self.mesh)
    count = slice_count(rows, 1, self.limit)
    return Slices(count, self.mesh, BATCH_AXES) if count > 1 else None


@dataclasses.dataclass(frozen=True)
class Term:
  """A summand of the loss, of single examples, of all pairs, or of both.

  Attributes:
    name: prefix of the metrics, key of `init`'s parameters and of the carry.
    each: b examples -> ([b] float32 losses, {name: [b, ...] observed, or
      [1, ...], their sum}). The loss is their mean over the global batch; so
      are the metrics, of which scalars are logged. May draw from `Slice.keys`
      and nothing else: slices and devices then leave loss and gradients as they
      are.
    pairs: (parameters, embeddings of all B, batch) -> (() loss, metrics under
      their own names). It sees no tokens: these are never there for all B.
    weight: step -> factor; None: 1 at every step.
    init: (key, a slice of example inputs) -> parameters of the term's own.
    carried: see `Carried`.
    summary: means over the global batch of what `each` observed, "loss" among
      them -> what is logged; None: the scalars.
    alone: how `each` is taken back before all else; None: with the rest.
  """

  name: str
  each: Callable[[Slice], tuple[jax.Array, Metrics]] | None = None
  pairs: (
    Callable[[Any, Embeddings, Batch], tuple[jax.Array, Metrics]] | None
  ) = None
  weight: optax.Schedule | None = None
  init: Callable[[jax.Array, Slice], Any] | None = None
  carried: Carried | None = None
  summary: Callable[[Metrics], Metrics] | None = None
  alone: Alone | None = None
