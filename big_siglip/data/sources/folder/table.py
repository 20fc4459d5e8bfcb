"""What every layout of a folder gives: rows with named fields."""

from collections.abc import Callable, Iterator
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
  """What a table says of an image.

  Attributes:
    line: its number in the table's file, from 1; 0 where rows have none.
    fields: by their columns.
    problem: what is wrong with it; "" for nothing.
    is_mistake: whether the problem makes the whole table doubtful: then it is
      refused, whatever share of its rows is good.
    split: that the data set itself put it into; None: into none.
  """

  line: int
  fields: dict[str, Any]
  problem: str = ""
  is_mistake: bool = False
  split: str | None = None


@dataclasses.dataclass(frozen=True)
class Table:
  """All rows of one file, or of one folder.

  Attributes:
    where: what messages call it.
    columns: the names of all fields, in order.
    rows: returns the rows, from the first one on.
    splits: that its rows name themselves.
    text_names: columns that hold texts, best first, before the usual ones.
    label: the column of the label, where the layout has one.
    unit: what messages count its rows by.
    is_found: whether its images are named as they were found.
  """

  where: str
  columns: tuple[str, ...]
  rows: Callable[[], Iterator[Row]]
  splits: tuple[str, ...] = ()
  text_names: tuple[str, ...] = ()
  label: str | None = None
  unit: str = "line"
  is_found: bool = False
