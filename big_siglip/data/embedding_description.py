"""What a folder of embeddings says of itself, and what its files are called."""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
from typing import Any

from big_siglip.errors import UserError

# Beside the shards: a line below makes readers of Parquet folders pass it by.
NAME, SKIPPED = "_embedding.json", "_skipped.jsonl"
# As they were called before.
OLD_NAMES = {NAME: "embedding.json", SKIPPED: "skipped.jsonl"}


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
    data: the format of the data set that they are of, or "" (files).
    columns: of the rows beside key, text, embedding and id, and their Arrow
      types; None: it was made before rows had any, and has no ids.
    numbers: of the shards, after an update; None: there was none, and they are
      those of `count` inputs.
    next_id: more than any row's id, after an update.
    update: names the last update, or "".
    patches: what the h w C numbers of a row are, the grid row by row: "kind"
      and "layer" (`models.patches.Patches`), "size" (pixels), "grid" (h, w) and
      "width" (C). Where images keep their shape, size and grid are None: the
      columns "grid_rows" and "grid_columns" say h and w, and zeros fill the
      rest of a row. None: a row is of a whole image or text.
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
  data: str = ""
  columns: dict[str, str] | None = None
  numbers: list[int] | None = None
  next_id: int = 0
  update: str = ""
  patches: dict[str, Any] | None = None

  @property
  def shard_numbers(self) -> Sequence[int]:
    """The numbers of all shards of a finished folder, in order."""
    if self.numbers is not None:
      return self.numbers
    return range(-(-self.count // self.shard_size))

  @property
  def num_shards(self) -> int:
    """How many shards a finished folder has."""
    return len(self.shard_numbers)

  def shard(self, number: int) -> range:
    """Returns the numbers of a shard's inputs, where there was no update."""
    start = number * self.shard_size
    return range(start, min(start + self.shard_size, self.count))


def read(folder: pathlib.Path) -> Description:
  """Returns what a folder says of itself.

  Raises:
    UserError: it says nothing, or not all.
  """
  file = description_file(folder)
  try:
    return Description(**json.loads(file.read_text()))
  except FileNotFoundError as error:
    raise UserError(f"{folder}: holds no embeddings (no {NAME})") from error
  except OSError as error:
    raise UserError(f"{file}: {error.strerror}") from error
  except (ValueError, TypeError) as error:
    raise UserError(f"{file}: is damaged ({error})") from error


def check_whole(description: Description, folder: str | pathlib.Path) -> None:
  """Checks that rows are of whole images or texts.

  Raises:
    UserError: they are of patches.
  """
  if description.patches is not None:
    raise UserError(
      f"{folder}: holds patches of images, must hold embeddings of whole ones "
      "(big-siglip embed without --patches)"
    )


def description_file(folder: pathlib.Path) -> pathlib.Path:
  """Returns the file that describes a folder, by its new name or its old."""
  old = folder / OLD_NAMES[NAME]
  new = folder / NAME
  return old if old.exists() and not new.exists() else new


def shard_name(shard: int) -> str:
  """Returns the name of a shard's file."""
  return f"shard-{shard:06}.parquet"


def staged_name(shard: int, update: str) -> str:
  """Returns the name of a shard's file until an update is described."""
  return f".{shard_name(shard)}.{update}"


def shard_file(
  folder: pathlib.Path, description: Description, shard: int
) -> pathlib.Path:
  """Returns the file of a shard, whether or not it has its name yet."""
  staged = folder / staged_name(shard, description.update)
  if description.update and staged.exists():
    return staged
  return folder / shard_name(shard)
