"""From batches to embeddings: the device work that all evaluators share.

Shape letters: B rows of all processes, b rows of this one, N examples, D width
of the embedding.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import math
from typing import Any, NamedTuple

from absl import logging
from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from big_siglip import durations, progress
from big_siglip.data.batch import Image as Prepared
from big_siglip.errors import UserError
from big_siglip.evaluators.slices import in_cache
from big_siglip.models.towers import Image, is_embedded
from big_siglip.schema.sizes import grid_side
from big_siglip.schema.words import KERNELS
from big_siglip.sharding import batch_devices, replicated, to_global

_NAMED = 5  # Embeddings that are not finite.

Labels = Mapping[str, Any]  # Arrays of one value a row.
# (params, inputs b.., labels b) -> (BD float32, labels B), on every device.
Embed = Callable[[Any, Prepared | np.ndarray, Labels], tuple[jax.Array, Labels]]


@dataclasses.dataclass(frozen=True)
class Rows:
  """What an evaluator embeds, as often as it asks.

  Attributes:
    inputs: the key of what is embedded: "image" or "text".
    batches: starts a pass over padded batches, see `embed_all`.
    name: what messages call the input of an index.
    count: how many there are, with those that cannot be read.
  """

  inputs: str
  batches: Callable[[], Iterable[Mapping[str, np.ndarray]]]
  name: Callable[[int], str]
  count: int

  def embed(
    self, embed: "Embed", params: Any, labels: tuple[str, ...] = ()
  ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns embeddings and values of all of them: see `embed_all`."""
    return embed_all(
      embed,
      params,
      self.batches(),
      inputs=self.inputs,
      labels=labels,
      name=self.name,
      count=self.count,
    )


class Embedders(NamedTuple):
  """What evaluators ask of a model.

  Attributes:
    image: embeds images.
    text: embeds texts.
    features: what the image tower says before it is made a unit vector.
    logits: params -> (scale, bias) of the logits; the scale is no logarithm.
    devices: how many share the rows of a batch.
    sigmoid: whether the sigmoid of a logit means something; see
      `inference.Model.has_trained_bias`.
  """

  image: Embed
  text: Embed
  features: Embed
  logits: Callable[[Any], tuple[float, float]]
  devices: int
  sigmoid: bool = True


def exact_model(model: ConfigDict) -> ConfigDict:
  """Returns `config.model` as it is evaluated: in float32, on any device.

  A kernel that training names may need another dtype, batch or chip.
  """
  exact = ConfigDict(model).copy_and_resolve_references()
  exact.dtype = "float32"
  if exact.attention in KERNELS:
    exact.attention = "auto"
  return exact


def make_embedders(model: nn.Module, mesh: Mesh) -> Embedders:
  """Returns the functions that embed images and texts on a mesh.

  Args:
    model: see `big_siglip.models.SigLIP`; its dtype is that of the evaluation.
    mesh: on which the parameters lie.
  """
  tower = model.config.image
  tokens = tower.max_patches or grid_side(tower) ** 2

  def embed_image(params: Any, image: Image) -> jax.Array:
    def apply(image: Image) -> jax.Array:
      return model.apply({"params": params}, image, None)[0]

    if is_embedded(image):
      return apply(image)
    return in_cache(apply, image, tokens, mesh)

  def embed_text(params: Any, text: jax.Array) -> jax.Array:
    return model.apply({"params": params}, None, text)[1]

  def image_features(params: Any, image: Image) -> jax.Array:
    return model.apply({"params": params}, image, method="image_features")

  def logits(params: Any) -> tuple[float, float]:
    scale, bias = jax.device_get((params["logit_scale"], params["logit_bias"]))
    return math.exp(scale), float(bias)

  kind = mesh.devices.flat[0].device_kind
  config = ConfigDict(model.config).to_dict()
  key = durations.key(f"{kind} x {mesh.size}", config)
  return Embedders(
    make_embed(embed_image, mesh, "the image tower", key),
    make_embed(embed_text, mesh, "the text tower", key),
    make_embed(image_features, mesh, "the image tower", f"{key} features"),
    logits,
    batch_devices(mesh),
  )


def make_embed(
  apply: Callable[[Any, Any], jax.Array],
  mesh: Mesh,
  what: str = "",
  key: str | None = None,
) -> Embed:
  """Returns `apply` as a function that runs on the whole mesh.

  It takes the rows of its own process, as numpy arrays, and returns those of
  all. Rows are split over the batch axes; zeros are added up to a multiple of
  the devices, so their labels must tell padding, as a "mask" does.

  Args:
    apply: (params, inputs [B, ...]) -> BD.
    mesh: the mesh of `big_siglip.sharding.make_mesh`.
    what: is compiled, in words.
    key: what the time that takes depends on, beside the shape of the inputs.
  """
  count = len({device.process_index for device in mesh.devices.flat})
  multiple = max(batch_devices(mesh) // count, 1)

  def run(params, inputs, labels):
    return apply(params, inputs).astype(jnp.float32), labels

  run = jax.jit(run, out_shardings=replicated(mesh))

  def pad(rows: np.ndarray) -> np.ndarray:
    missing = -len(rows) % multiple
    return np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1))

  compiled: set[str] = set()

  def embed(params, inputs, labels):
    local = jax.tree.map(pad, (inputs, dict(labels)))
    arrays = to_global(mesh, local)
    shape = str(jax.tree.map(np.shape, inputs))
    if shape in compiled:
      return run(params, *arrays)
    own = f"{what} {key} {shape}" if key else None
    with progress.waiting(f"compiling {what}".rstrip(), own):
      compiled.add(shape)
      return run(params, *arrays)

  return embed


def embed_all(
  embed: Embed,
  params: Any,
  batches: Iterable[Mapping[str, np.ndarray]],
  *,
  inputs: str,
  labels: tuple[str, ...] = (),
  name: Callable[[int], str] = str,
  count: int | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Embeds a whole data set; the same in every process.

  Embeddings that are not finite are named in the log; what becomes of them is
  the evaluator's matter.

  Args:
    embed: see `make_embed`.
    params: the model's parameters.
    batches: as many in every process, with `inputs`, "index" int32 [b], "mask"
      bool [b] (false: no example, left out of the result) and `labels`.
    inputs: the key of what is embedded: "image" or "text".
    labels: keys of further values to return, [b] each.
    name: what messages call the input of an index.
    count: how many there are, with those that cannot be read; to tell how long
      the rest takes.

  Returns:
    ND float32 embeddings in the order of "index", and {"index": [N], "finite":
    bool [N], ...} of the same rows.

  Raises:
    UserError: no example is left.
  """
  names = (*labels, "index", "mask")
  running = (
    embed(params, batch[inputs], {name: batch[name] for name in names})
    for batch in batches
  )
  embeddings, values = [], []
  with progress.Progress(count, f"{inputs}s") as show:
    for rows, row_values in _one_behind(running):
      rows, row_values = jax.device_get((rows, row_values))
      mask = row_values.pop("mask")
      embeddings.append(rows[mask])
      values.append({name: value[mask] for name, value in row_values.items()})
      show.add(int(mask.sum()))
  if not sum(map(len, embeddings)):
    raise UserError("evaluation: none of its examples can be read")
  joined = {
    key: np.concatenate([value[key] for value in values])
    for key in names
    if key != "mask"
  }
  order = np.argsort(joined["index"])
  rows = np.concatenate(embeddings)[order]
  values = {key: value[order] for key, value in joined.items()}
  values["finite"] = np.isfinite(rows).all(axis=1)
  _name_not_finite(values, inputs, name)
  return rows, values


def _name_not_finite(values, inputs: str, name: Callable[[int], str]) -> None:
  bad = values["index"][~values["finite"]].tolist()
  if bad:
    shown = ", ".join(map(name, bad[:_NAMED])) + ", ..." * (len(bad) > _NAMED)
    logging.warning(
      "%d of %d %s embeddings are not finite, and are not ranked: %s",
      *(len(bad), len(values["index"]), inputs, shown),
    )


def _one_behind(items: Iterable[Any]) -> Iterator[Any]:
  """Yields each item once the next is made, so that devices never wait."""
  previous = []
  for item in items:
    yield from previous
    previous = [item]
  yield from previous
