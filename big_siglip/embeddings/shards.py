"""One shard of a folder of embeddings: a Parquet file.

It is written under another name and gets its own when it is whole. What it left
out stands in its own metadata.

Shape letters: N rows, E width of an embedding.
"""

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from big_siglip.data.embedding_description import (
  Description,
)
from big_siglip.errors import UserError

_SKIPPED = b"skipped"
# What a reader holds in memory at least: rows, or bytes of patches.
_ROW_GROUP, _BYTES = 4096, 2**26

# (key, reason, ...) of each; what follows is the `Stamp` of what was skipped.
Skipped = Sequence[tuple[Any, ...]]


class Rows(NamedTuple):
  """What a shard holds.

  Attributes:
    ids: of its rows.
    keys: of its rows.
    texts: of its rows; None: there are none.
    embeddings: NE.
    fields: values of the further columns.
  """

  ids: Sequence[int]
  keys: Sequence[str]
  texts: Sequence[str | None] | None
  embeddings: np.ndarray
  fields: Sequence[Mapping[str, Any]]


def write_shard(
  file: pathlib.Path, description: Description, rows: Rows, skipped: Skipped
) -> None:
  """Writes one shard, whole or not at all.

  Args:
    file: of the shard.
    description: of the folder.
    rows: what it holds.
    skipped: what it leaves out.

  Raises:
    UserError: the disk is full, or something else keeps it from being written.
  """
  table = _table(description, rows, skipped)
  width = max(description.width, 1)
  plain = [name for name in table.column_names if name != "embedding"]
  partial = file.with_name(f".{file.name.lstrip('.')}.partial")
  try:
    with partial.open("wb") as stream:
      # Embeddings are noise to a compressor, and to a dictionary.
      pq.write_table(
        table,
        stream,
        row_group_size=max(min(_ROW_GROUP, _BYTES // (4 * width)), 1),
        compression="none",
        use_dictionary=False,
        write_statistics=plain,
      )
      stream.flush()
      os.fsync(stream.fileno())  # Or a power cut may leave a name alone.
    partial.replace(file)
  except OSError as error:
    raise UserError(f"{file}: not writable ({error.strerror})") from error


def read_skipped(metadata: pq.FileMetaData) -> Skipped:
  """Returns what a shard has left out."""
  return json.loads((metadata.metadata or {}).get(_SKIPPED, b"[]"))


def _table(description: Description, rows: Rows, skipped: Skipped) -> pa.Table:
  values = rows.embeddings.astype(description.dtype).reshape(-1)
  texts = rows.texts or [None] * len(rows.keys)
  columns = {
    "key": pa.array(rows.keys, pa.string()),
    "text": pa.array(texts, pa.string()),
    "embedding": pa.FixedSizeListArray.from_arrays(
      pa.array(values), description.width
    ),
  }
  if description.columns is not None:
    columns["id"] = pa.array(rows.ids, pa.int64())
    for name, kind in description.columns.items():
      found = [one.get(name) for one in rows.fields]
      columns[name] = pa.array(found, pa.type_for_alias(kind))
  return pa.table(columns).replace_schema_metadata(
    {_SKIPPED: json.dumps(list(skipped)).encode()}
  )
