"""_embedding.json: what lies in a folder of embeddings, and who made it."""

from collections.abc import Sequence
import dataclasses
import json
import math
import pathlib
import shutil
from typing import Any

import numpy as np

from big_siglip.data.embedding_description import (
  Description,
  description_file,
  NAME,
  read,
)
from big_siglip.data.preprocessing import Preprocessing
from big_siglip.embeddings.given import AnyInputs, GRID
from big_siglip.errors import UserError
from big_siglip.models.patches import Patches
from big_siglip.run import workdir
from big_siglip.schema.sizes import resolve_image
from big_siglip.trained import saved
from big_siglip.trained.inference import Model
from big_siglip.trained.patches import Look

# What decides whether a query's embedding may be compared with the folder's.
MODEL_FIELDS = ("width", "preprocessing", "parameters", "patches")


def describe(
  inputs: AnyInputs, model: dict[str, Any], dtype: str, shard_size: int
) -> Description:
  """Returns what a folder of these inputs will be.

  Args:
    inputs: what is embedded.
    model: see `describe_model`.
    dtype: of the embeddings, float32 or float16.
    shard_size: inputs of a shard.
  """
  patches = model.get("patches")
  ragged = patches is not None and patches["grid"] is None
  return Description(
    kind=inputs.kind,
    inputs=str(inputs.path),
    count=len(inputs),
    fingerprint=inputs.fingerprint(),
    dtype=dtype,
    shard_size=shard_size,
    data=inputs.data,
    columns={**inputs.columns, **(GRID if ragged else {})},
    **model,
  )


def check_same(description: Description, folder: pathlib.Path) -> None:
  """Compares with the description of a folder that is to be continued.

  A model or inputs that were moved are the same ones still.

  Args:
    description: of what will be written.
    folder: of embeddings.

  Raises:
    UserError: names the first field that differs.
  """
  _check_fields(
    folder,
    description,
    ("kind", *MODEL_FIELDS, "dtype", "shard_size", "count", "fingerprint"),
    "go on with what it was made of, or name another --output",
  )


def check_update(description: Description, folder: pathlib.Path) -> None:
  """Compares with the description of a folder that is to be updated.

  Args:
    description: of what it will be.
    folder: of embeddings.

  Raises:
    UserError: names the first field that differs and must not.
  """
  _check_fields(
    folder,
    description,
    ("kind", *MODEL_FIELDS, "dtype", "shard_size"),
    "an update keeps it; or name another --output",
  )


def describe_model(model: Model, checkpoint: str) -> dict[str, Any]:
  """Returns `checkpoint` and the `MODEL_FIELDS` of a model.

  Args:
    model: the model.
    checkpoint: what it was loaded from.
  """
  config = model.config
  image = config.model.image
  return {
    "checkpoint": _resolve(checkpoint),
    "width": config.model.embed_dim or resolve_image(image).width,
    "preprocessing": Preprocessing.of(config).hashed().as_dict(),
    "parameters": saved.fingerprint(model.params),
    "patches": None,
  }


def describe_patches(
  model: Model, checkpoint: str, asked: Patches, look: Look
) -> dict[str, Any]:
  """Returns what `describe_model` does where rows are of patches.

  Args:
    model: the model.
    checkpoint: what it was loaded from.
    asked: which patches.
    look: sees them.
  """
  *grid, numbers = look.shape
  patches = {
    "kind": asked.kind,
    "layer": asked.layer,
    "size": None if look.keeps_shape else look.preprocess.value.image_size,
    "grid": None if look.keeps_shape else grid,
    "width": numbers,
  }
  return describe_model(model, checkpoint) | {
    "width": math.prod(look.shape),
    "patches": patches,
  }


def check_disk(
  folder: pathlib.Path, description: Description, count: int
) -> None:
  """Refuses to begin what no disk holds.

  Args:
    folder: that will be written, or has been begun.
    description: of it.
    count: rows that are to come.

  Raises:
    UserError: they need more than is free.
  """
  place = folder.absolute()
  while not place.exists():
    place = place.parent
  free = shutil.disk_usage(place).free
  row = description.width * np.dtype(description.dtype).itemsize
  if count * row > free:
    raise UserError(
      f"--output={folder}: {count} rows of {row:,} bytes need "
      f"{count * row / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there"
    )


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


def write(folder: pathlib.Path, description: Description) -> None:
  """Writes _embedding.json, whole or not at all."""
  text = json.dumps(dataclasses.asdict(description), indent=2) + "\n"
  workdir.write_whole(folder / NAME, text)


def _resolve(checkpoint: str) -> str:
  """Returns a path that means the same elsewhere and after more training."""
  if saved.is_run(checkpoint):
    return str(saved.find(checkpoint)[1])
  place = pathlib.Path(checkpoint).expanduser()
  return str(place.resolve()) if place.exists() else checkpoint


def _check_fields(
  folder: pathlib.Path, now: Description, fields: Sequence[str], advice: str
) -> None:
  before = read(folder)
  for field in fields:
    old, new = getattr(before, field), getattr(now, field)
    if old == new:
      continue
    difference = f"{field}={old}, now {new}"
    if field == "preprocessing":
      old, new = (Preprocessing.from_dict(value) for value in (old, new))
      if not (differences := new.differences(old)):
        continue
      difference = f"made with other preprocessing ({differences[0]})"
    if field == "parameters":
      difference = (
        f"other parameters, made by {before.checkpoint}, now {now.checkpoint}"
      )
    if field in ("count", "fingerprint"):
      advice = "--update takes in what is new; or name another --output"
    raise UserError(f"{description_file(folder)}: {difference}; {advice}")
