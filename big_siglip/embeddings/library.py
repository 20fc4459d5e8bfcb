"""All rows of a library in memory, with the images that they are of.

Shape letters: N rows, E width of an embedding.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import numpy as np

from big_siglip import progress
from big_siglip.data.embedding_description import check_whole, Description
from big_siglip.data.embedding_folder import Reader
from big_siglip.embeddings import datasets, neighbours
from big_siglip.embeddings.given import AnyInputs
from big_siglip.embeddings.inputs import DataImages, Inputs
from big_siglip.embeddings.pipeline import embed_missing
from big_siglip.errors import UserError
from big_siglip.trained.inference import Model


@dataclasses.dataclass(frozen=True)
class Library:
  """Images or texts, embedded.

  Attributes:
    keys: N, what they are called.
    rows: NE float32.
    skipped: (key, reason) of what could not be embedded, if that was seen.
    records: returns what is known of some rows: "text", "width", "height",
      "file_bytes" ..., as far as it is known.
    read: returns the bytes of a row's image; None where there is none.
  """

  keys: Sequence[str]
  rows: np.ndarray
  skipped: Sequence[tuple[str, str]]
  records: Callable[[Sequence[int]], list[Mapping[str, Any]]]
  read: Callable[[int], bytes | None]


def of_folder(path: str) -> Library:
  """Returns what lies in a folder of big-siglip embed.

  Raises:
    UserError: there are no embeddings.
  """
  reader = Reader(pathlib.Path(path).expanduser())
  check_whole(reader.description, path)
  if not reader.is_whole:
    progress.say(
      f"note: {path} has {len(reader.shards)} of "
      f"{reader.description.num_shards} shards"
    )
  rows = neighbours.read_rows(reader)
  keys = reader.keys()
  read = _reading(reader.description, keys, reader.ids)
  return Library(keys, rows, (), reader.records, read)


def _reading(
  about: Description, keys: Sequence[str], ids: np.ndarray
) -> Callable[[int], bytes | None]:
  """Returns what reads the images that a folder was made of, if it can."""
  if about.kind != "images":
    return lambda row: None
  if not about.data:
    return Inputs(pathlib.Path(about.inputs), keys).read
  try:
    source = datasets.open_images(about.inputs, about.data, None, None, "")
  except UserError as error:
    progress.say(f"note: no pictures: {error}")
    return lambda row: None
  inputs = DataImages(about.inputs, about.data, source)

  def read(row: int) -> bytes | None:
    number = int(ids[row])  # That of the input, unless there were updates.
    same = number < len(inputs) and inputs.look(number).key == keys[row]
    return inputs.read(number) if same else None

  return read


def of_images(model: Model, inputs: AnyInputs, threads: int) -> Library:
  """Embeds images and keeps the rows in memory.

  Args:
    model: the model.
    inputs: the images.
    threads: that read and decode.

  Raises:
    UserError: none can be embedded, or the model embeds no images.
  """
  model.embedder("images")
  taken = _Taken()
  with progress.Progress(len(inputs), "images") as show:
    embed_missing(
      taken,
      model,
      inputs,
      {0: range(len(inputs))},
      batch_size=model.batch_size,
      num_threads=threads,
      progress=show.add,
    )
  if not taken.keys:
    key, reason = taken.skipped[0]
    raise UserError(
      f"none of {len(inputs)} images can be embedded, such as {key}: {reason}"
    )
  return Library(
    taken.keys,
    taken.rows,
    taken.skipped,
    lambda rows: [taken.fields[row] for row in rows],
    lambda row: inputs.read(taken.ids[row]),
  )


class _Taken:
  """Takes the one shard that there is; a `pipeline.Writes`."""

  def __init__(self):
    self.keys: Sequence[str] = ()
    self.rows = np.zeros((0, 0), np.float32)
    self.skipped: Sequence[tuple[str, str]] = ()
    self.ids: Sequence[int] = ()
    self.fields: Sequence[Mapping[str, Any]] = ()

  def write(
    self, shard, keys, texts, embeddings, skipped, ids=None, fields=None
  ) -> None:
    """See `pipeline.Writes.write`."""
    del shard, texts
    self.keys, self.rows = keys, embeddings
    self.skipped = [(key, reason) for key, reason, *_ in skipped]
    self.ids, self.fields = ids, fields
