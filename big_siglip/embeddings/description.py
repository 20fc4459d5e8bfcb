"""embedding.json: what lies in a folder of embeddings, and who made it."""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

from big_siglip import saved, workdir
from big_siglip.embeddings.inputs import Inputs
from big_siglip.errors import UserError
from big_siglip.inference import Model
from big_siglip.models.sizes import resolve_image

NAME = "embedding.json"
DTYPES = ("float32", "float16")
# What decides whether a query's embedding may be compared with the folder's.
MODEL_FIELDS = ("width", "preprocessing", "parameters")


@dataclasses.dataclass(frozen=True)
class Description:
  """Everything that all shards of a folder have in common.

  Attributes:
    kind: "images" or "texts".
    inputs: where they came from.
    count: how many they were, unreadable ones with them.
    fingerprint: see `Inputs.fingerprint`.
    checkpoint: where the model lay.
    parameters: a hash of all its parameters.
    width: of an embedding.
    preprocessing: of images and texts, the tokenizer's file as a hash.
    dtype: of the embeddings: "float32" or "float16".
    shard_size: inputs of a shard, unreadable ones with them.
  """

  kind: str
  inputs: str
  count: int
  fingerprint: str
  checkpoint: str
  parameters: str
  width: int
  preprocessing: dict[str, Any]
  dtype: str
  shard_size: int

  @property
  def num_shards(self) -> int:
    """How many shards a finished folder has."""
    return -(-self.count // self.shard_size)

  def shard(self, number: int) -> range:
    """Returns the numbers of a shard's inputs."""
    start = number * self.shard_size
    return range(start, min(start + self.shard_size, self.count))

  def check_same(self, folder: pathlib.Path) -> None:
    """Compares with the description of a folder that is to be continued.

    A model or inputs that were moved are the same ones still.

    Raises:
      UserError: names the first field that differs.
    """
    _check_fields(
      folder,
      self,
      ("kind", *MODEL_FIELDS, "dtype", "shard_size", "count", "fingerprint"),
      "go on with what it was made of, or name another --output",
    )


def describe(
  inputs: Inputs, model: dict[str, Any], dtype: str, shard_size: int
) -> Description:
  """Returns what a folder of these inputs will be.

  Args:
    inputs: what is embedded.
    model: see `describe_model`.
    dtype: of the embeddings, one of `DTYPES`.
    shard_size: inputs of a shard.
  """
  return Description(
    kind=inputs.kind,
    inputs=str(inputs.path),
    count=len(inputs),
    fingerprint=inputs.fingerprint(),
    dtype=dtype,
    shard_size=shard_size,
    **model,
  )


def describe_model(model: Model, checkpoint: str) -> dict[str, Any]:
  """Returns `checkpoint` and the `MODEL_FIELDS` of a model.

  Args:
    model: the model.
    checkpoint: what it was loaded from.
  """
  config = model.config
  tokenizer = config.data.tokenizer
  if tokenizer != "bytes":
    file = pathlib.Path(tokenizer).expanduser()
    tokenizer = hashlib.sha256(file.read_bytes()).hexdigest()
  image = config.model.image
  return {
    "checkpoint": _resolve(checkpoint),
    "width": config.model.embed_dim or resolve_image(image).width,
    "preprocessing": {
      "image_size": image.image_size,
      "resize": config.data.resize,
      "tokenizer": tokenizer,
      "lowercase": config.data.lowercase,
      "pad_id": config.data.pad_id,
      "text_length": config.model.text.length,
    },
    "parameters": _hash_parameters(model.params),
  }


def check_model(
  folder: pathlib.Path, description: Description, model: dict[str, Any]
) -> None:
  """Compares the model that made a folder with another.

  Args:
    folder: of embeddings.
    description: what it says.
    model: see `describe_model`.

  Raises:
    UserError: names the first field that differs.
  """
  _check_fields(
    folder,
    dataclasses.replace(description, **model),
    MODEL_FIELDS,
    "name the model that made it, or leave it out",
  )


def read(folder: pathlib.Path) -> Description:
  """Returns what a folder says of itself.

  Raises:
    UserError: it says nothing, or not all.
  """
  file = folder / NAME
  try:
    return Description(**json.loads(file.read_text()))
  except FileNotFoundError as error:
    raise UserError(f"{folder}: holds no embeddings (no {NAME})") from error
  except OSError as error:
    raise UserError(f"{file}: {error.strerror}") from error
  except (ValueError, TypeError) as error:
    raise UserError(f"{file}: is damaged ({error})") from error


def write(folder: pathlib.Path, description: Description) -> None:
  """Writes embedding.json, whole or not at all."""
  text = json.dumps(dataclasses.asdict(description), indent=2) + "\n"
  workdir.write_whole(folder / NAME, text)


def _resolve(checkpoint: str) -> str:
  """Returns a path that means the same elsewhere and after more training."""
  if saved.is_run(checkpoint):
    return str(saved.find(checkpoint)[1])
  place = pathlib.Path(checkpoint).expanduser()
  return str(place.resolve()) if place.exists() else checkpoint


def _hash_parameters(params: Any) -> str:
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    # One device's copy (a loaded model is whole on each), because a jax.Array
    # keeps what numpy once saw of it: all parameters again, in host memory.
    digest.update(np.ascontiguousarray(leaf.addressable_data(0)))
  return digest.hexdigest()


def _check_fields(
  folder: pathlib.Path, now: Description, fields: Sequence[str], advice: str
) -> None:
  before = read(folder)
  for field in fields:
    old, new = getattr(before, field), getattr(now, field)
    if old == new:
      continue
    if field == "preprocessing":
      field = next(name for name in new if new[name] != old.get(name))
      old, new = old.get(field), new[field]
      field = f"preprocessing.{field}"
    difference = f"{field}={old}, now {new}"
    if field == "parameters":
      difference = (
        f"other parameters, made by {before.checkpoint}, now {now.checkpoint}"
      )
    raise UserError(f"{folder / NAME}: {difference}; {advice}")
