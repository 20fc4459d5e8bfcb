"""The page of near-duplicates: groups with small images, the largest first.

duplicates.html with the report's page.css in it; names and texts are other
people's, and the template escapes them.
"""

from collections.abc import Mapping, Sequence
import datetime
from typing import Any, NamedTuple

from etils import epath
from markupsafe import Markup
import numpy as np

from big_siglip import progress
from big_siglip.embeddings.library import Library
from big_siglip.embeddings.neighbours import Group, Pairs
from big_siglip.errors import BadExample, UserError
from big_siglip.report import templates
from big_siglip.report.thumbnails import Picture, picture, shrink_bytes
from big_siglip.run import workdir

_GROUPS = 300  # On a page.
_CARDS = 24  # Of a group.
_ALL_CARDS = 1500  # On a page, of some 6 kB each.
QUANTILES = (0.5, 0.9, 0.99)


class Card(NamedTuple):
  """A member of a group.

  Attributes:
    picture: None where there is none.
    key: what it is called.
    text: its own, of texts; a caption, of images.
    size: "640 x 480, 52 kB", as far as it is known.
    cosine: with the first member; None of that one.
  """

  picture: Picture | None
  key: str
  text: str | None
  size: str
  cosine: float | None


class Shown(NamedTuple):
  """A group on the page.

  Attributes:
    count: its members.
    cards: of the first of them.
    low: the cosine of its farthest near pair.
    high: that of its nearest.
  """

  count: int
  cards: list[Card]
  low: float
  high: float


def quantiles(pairs: Pairs) -> dict[float, float]:
  """Returns of how far the nearest other one is: {share: cosine}."""
  there = pairs.nearest[np.isfinite(pairs.nearest)]
  if not len(there):
    return {}
  return {q: float(np.quantile(there, q)) for q in QUANTILES}


def order_members(
  group: Group, records: Sequence[Mapping[str, Any]]
) -> list[int]:
  """Returns a group's places, the one most worth keeping first.

  That is the one of most pixels, of these that of the largest file.

  Args:
    group: the group.
    records: of its rows, see `Library.records`.
  """

  def worth(place: int) -> tuple[int, int]:
    own = records[place]
    pixels = (own.get("width") or 0) * (own.get("height") or 0)
    return -pixels, -(own.get("file_bytes") or 0)

  return sorted(range(len(group.rows)), key=worth)


def write_page(
  output: str,
  library: Library,
  pairs: Pairs,
  groups: Sequence[Group],
  threshold: float,
  place: str,
) -> epath.Path:
  """Writes the page and returns its path.

  Args:
    output: the file.
    library: what was compared.
    pairs: of it.
    groups: of these.
    threshold: the least cosine of a pair.
    place: what the page calls the library.

  Raises:
    UserError: the page cannot be written.
  """
  file = epath.Path(output).expanduser()
  shown, left = [], _ALL_CARDS
  chosen = groups[:_GROUPS]
  with progress.Progress(len(chosen), "groups drawn") as show:
    for group in chosen:
      if left < 2:
        break
      shown.append(_show(library, pairs, group, min(left, _CARDS)))
      left -= len(shown[-1].cards)
      show.add(1)
  environment = templates.environment()
  now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
  page = environment.get_template("duplicates.html").render(
    place=place,
    written=now,
    style=Markup(templates.FOLDER.joinpath("page.css").read_text()),
    threshold=threshold,
    count=len(library.keys),
    pairs=len(pairs.first),
    groups=len(groups),
    members=sum(len(group.rows) for group in groups),
    quantiles=quantiles(pairs),
    skipped=library.skipped,
    shown=shown,
  )
  try:
    workdir.write_whole(file, page)
  except OSError as error:
    raise UserError(f"--page={output}: not writable ({error.strerror})") from (
      error
    )
  return file


def _show(library: Library, pairs: Pairs, group: Group, most: int) -> Shown:
  records = library.records(group.rows.tolist())
  order = order_members(group, records)
  first = library.rows[group.rows[order[0]]]
  cards = []
  for place in order[:most]:
    row = int(group.rows[place])
    cosine = float(min(library.rows[row] @ first, 1)) if cards else None
    cards.append(
      Card(
        _draw(library, row),
        library.keys[row],
        records[place].get("text"),
        _size(records[place]),
        cosine,
      )
    )
  cosines = pairs.cosine[group.pairs]
  return Shown(
    len(group.rows), cards, float(cosines.min()), float(cosines.max())
  )


def _draw(library: Library, row: int) -> Picture | None:
  data = library.read(row)
  try:
    return None if data is None else picture(shrink_bytes(data), "")
  except BadExample:
    return None


def _size(record: Mapping[str, Any]) -> str:
  parts = []
  if record.get("width") and record.get("height"):
    parts.append(f"{record['width']} x {record['height']}")
  if record.get("file_bytes"):
    parts.append(in_bytes(record["file_bytes"]))
  return ", ".join(parts)


def in_bytes(count: int) -> str:
  """Returns a size of a file as one says it: "52 kB"."""
  for unit, scale in (("MB", 10**6), ("kB", 10**3)):
    if count >= scale:
      return f"{count / scale:.3g} {unit}"
  return f"{count} bytes"
