"""Tables as others wrote them: texts of any length, and such as are none."""

import csv
from typing import Any, TYPE_CHECKING

if TYPE_CHECKING:
  import pyarrow as pa

_LARGEST_FIELD = 2**31 - 1  # Characters.


def allow_long_fields() -> None:
  """Lets csv read fields of more than its own limit of 131,072 characters."""
  csv.field_size_limit(_LARGEST_FIELD)


def to_rows(
  table: "pa.Table | pa.RecordBatch",
) -> list[dict[str, Any] | None]:
  """Returns all rows; None for one with text that is no UTF-8."""
  try:
    return table.to_pylist()
  except UnicodeDecodeError:
    half = len(table) // 2
    if not half:
      return [None]
    return [*to_rows(table.slice(0, half)), *to_rows(table.slice(half))]
