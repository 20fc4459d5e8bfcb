"""Low-rank adaptation: small matrices beside frozen kernels.

LoRA, arXiv:2106.09685: a kernel W becomes W + (alpha / r) A B, with A random
and B zero at the start. The sum is formed before the towers are applied, so
they need not know of it, and it is what `merge` leaves behind for export. The
gradient of a whole kernel exists for a moment, that of one block under a scan.

Shape letters: I and O inputs and outputs of a kernel, r rank.
"""

from collections.abc import Mapping
import dataclasses
import math
import re
from typing import Any
import zlib

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from big_siglip.errors import UserError
from big_siglip.models.siglip import SigLIP
from big_siglip.models.towers import Hidden, Image, Seen
from big_siglip.sharding import path_string

_TREE = "lora"  # Beside "image" and "text" in the parameters.


@dataclasses.dataclass(frozen=True)
class LoraSigLIP:
  """`SigLIP` with adapted kernels, and its face: `init`, `apply`, `look`.

  Attributes:
    model: the model without.
    rank: r.
    alpha: the sum's share is alpha / r.
    targets: regular expression that a kernel's whole path must match.
  """

  model: SigLIP
  rank: int
  alpha: float
  targets: str

  @property
  def config(self) -> Any:
    """`config.model`."""
    return self.model.config

  def init(self, rng: jax.Array, image: Image, text: jax.Array) -> Any:
    """Returns {"params": ...}, with the small matrices in "lora".

    Raises:
      UserError: no kernel matches.
    """
    params = dict(self.model.init(rng, image, text)["params"])
    adapted: dict[str, dict[str, jax.Array]] = {}
    for key, leaf in jax.tree_util.tree_leaves_with_path(params):
      path = path_string(key)
      if not re.fullmatch(self.targets, path):
        continue
      lead, inputs, outputs = _split(path, leaf.shape)
      # Its own key for each kernel, whatever the order of the others.
      own = jax.random.fold_in(rng, zlib.crc32(path.encode()))
      a = jax.random.normal(own, (*lead, inputs, self.rank)) * inputs**-0.5
      b = jnp.zeros((*lead, self.rank, outputs))
      adapted[path.replace("/", ".")] = {"a": a, "b": b}
    if not adapted:
      raise UserError(
        f"config.model.lora.targets={self.targets!r}: matches no kernel's path"
      )
    return {"params": {**params, _TREE: adapted}}

  def apply(self, variables: Mapping[str, Any], *args: Any, **options: Any):
    """As `SigLIP.apply`, any method of it, with the sums for the kernels."""
    params = self._merged(variables["params"])
    return self.model.apply({"params": params}, *args, **options)

  def look(
    self,
    params: Any,
    batch: Mapping[str, jax.Array],
    hidden: Hidden | None = None,
    keep: bool = False,
  ) -> Seen:
    """As `SigLIP.look`."""
    return self.model.look(self._merged(params), batch, hidden, keep)

  def _merged(self, params: Any) -> Any:
    return merge(params, self.alpha / self.rank)


def merge(params: Mapping[str, Any], share: float) -> Any:
  """Returns the parameters of a plain `SigLIP`: W + share A B.

  Args:
    params: with "lora"; without it they are returned as they are.
    share: alpha / r.
  """
  params = dict(params)
  adapted = params.pop(_TREE, {})

  def add(key, leaf):
    pair = adapted.get(path_string(key).replace("/", "."))
    if pair is None:
      return leaf
    return leaf + share * (pair["a"] @ pair["b"]).reshape(leaf.shape)

  return jax.tree_util.tree_map_with_path(add, params)


def make_model(
  config: Any, sharding: NamedSharding | None = None
) -> SigLIP | LoraSigLIP:
  """Returns the model of a `config.model`, adapted if `lora.rank` is not 0.

  Args:
    config: `config.model`.
    sharding: of the activations; see `SigLIP`.
  """
  model = SigLIP(config, sharding)
  lora = config.lora
  if not lora.rank:
    return model
  return LoraSigLIP(model, lora.rank, lora.alpha, lora.targets)


def merged(params: Any, config: Any) -> Any:
  """Returns the parameters of a plain `SigLIP` with any adaptation added.

  Args:
    params: of `make_model(config)`.
    config: `config.model`.
  """
  lora = config.lora
  return merge(params, lora.alpha / lora.rank) if lora.rank else params


def _split(path: str, shape: tuple[int, ...]):
  """Returns (depth,) of stacked blocks or (), I and O of a kernel."""
  lead = shape[:1] if "/blocks/" in path else ()
  inner = shape[len(lead) :]
  # Heads and head size are inputs of the last projection, outputs elsewhere.
  count = 2 if path.endswith("attention/out/kernel") else 1
  return lead, math.prod(inner[:count]), math.prod(inner[count:])
