"""Two evaluations of the same images: what is better, and what changed."""

from collections import Counter
from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

from scipy import stats

from big_siglip.errors import UserError
from big_siglip.evaluation import intervals, rows
from big_siglip.evaluation.reading import Evaluation, Results
from big_siglip.evaluators.result import Table

BETTER, WORSE = "wrong -> right", "right -> wrong"
# What makes two evaluations other ones; the rest says how it was computed.
_HOW = ("batch_size", "every")


class Difference(NamedTuple):
  """A metric of both.

  Attributes:
    metric: its name.
    before: in the first, over the images of both.
    after: in the second.
    low: lower limit of `after` - `before`.
    high: upper limit.
  """

  metric: str
  before: float
  after: float
  low: float
  high: float


class Changes(NamedTuple):
  """How many images, or queries of one way, changed.

  Attributes:
    way: "image_to_text" or "text_to_image"; "" for images.
    better: how many are right in the second alone.
    worse: how many are right in the first alone.
    p: of McNemar's exact test; None where several queries are of one image.
  """

  way: str
  better: int
  worse: int
  p: float | None


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One evaluation in two results.

  Attributes:
    name: of the evaluation.
    images: how many are in both.
    differences: a line for each metric.
    changes: how many changed.
    changed: a row for each that did: "key", "change", and both answers.
    notes: what is not the same in both, a sentence each.
  """

  name: str
  images: int
  differences: Sequence[Difference]
  changes: Sequence[Changes]
  changed: Table
  notes: Sequence[str]


def compare(first: Results, second: Results) -> list[Comparison]:
  """Returns the evaluations that both have, compared.

  Raises:
    UserError: they share none with answers; one has no rows, or other labels.
  """
  names = [n for n in first.evaluations if n in second.evaluations]
  pairs = [(first.evaluations[n], second.evaluations[n]) for n in names]
  if not pairs and len(first.evaluations) == len(second.evaluations) == 1:
    pairs = [(*first.evaluations.values(), *second.evaluations.values())]
  if not pairs:
    mine, theirs = (", ".join(r.evaluations) for r in (first, second))
    raise UserError(
      f"{first.place} has evaluations of {mine or 'nothing'}, {second.place} "
      f"of {theirs or 'nothing'}: none is in both"
    )
  pairs = [pair for pair in pairs if all(one.has_answers for one in pair)]
  if not pairs:
    raise UserError(
      f"{first.place} and {second.place}: what both have are evaluations of "
      "patches or of written texts, whose images are neither right nor wrong: "
      "compare their figures"
    )
  with_rows = [pair for pair in pairs if pair[0].file or pair[1].file]
  places = (first.place, second.place)
  return [_compare(one, other, places) for one, other in with_rows or pairs]


def _compare(
  first: Evaluation, second: Evaluation, places: tuple[str, str]
) -> Comparison:
  tables = [
    _rows(evaluation, place)
    for evaluation, place in zip((first, second), places, strict=True)
  ]
  if len({rows.is_retrieval(table) for table in tables}) > 1:
    raise UserError(
      f"{places[0]} and {places[1]}: one is of images, the other of queries"
    )
  before, after, notes = _paired(tables[0], tables[1], places)
  _check_labels(before, after, places)
  scores = [rows.scores(table) for table in (before, after)]
  differences = [
    Difference(
      metric,
      score.mean(),
      scores[1][metric].mean(),
      *intervals.difference(score, scores[1][metric]),
    )
    for metric, score in scores[0].items()
    if metric in scores[1]
  ]
  return Comparison(
    name=first.name if first.name == second.name else _both(first, second),
    images=len(set(next(iter(scores[0].values())).image.tolist())),
    differences=differences,
    changes=_changes(before, after),
    changed=_changed(before, after),
    notes=[*notes, *_unlike(first, second)],
  )


def _both(first: Evaluation, second: Evaluation) -> str:
  return f"{first.name} and {second.name}"


def _rows(evaluation: Evaluation, place: str) -> Table:
  try:
    return evaluation.rows()
  except UserError as error:
    raise UserError(f"{place}: {error}") from error


def _paired(
  first: Table, second: Table, places: tuple[str, str]
) -> tuple[Table, Table, list[str]]:
  """Returns the rows of both, in one order, and what only one of them has."""
  found = [
    {identity: row for row, identity in enumerate(_identities(table))}
    for table in (first, second)
  ]
  shared = [identity for identity in found[0] if identity in found[1]]
  if not shared:
    examples = [
      repr(table["key"][0]) for table in (first, second) if table["key"]
    ]
    raise UserError(
      f"{places[0]} and {places[1]} share no image: "
      + ("one has no row" if len(examples) < 2 else " and ".join(examples))
    )
  notes = []
  for own, other, place in zip(found, found[::-1], places, strict=True):
    alone = [identity for identity in own if identity not in other]
    if alone:
      what = "queries" if rows.is_retrieval(first) else "images"
      notes.append(
        f"{len(alone):,} {what} are in {place} alone and left out here, the "
        f"first of {alone[0][0]}"
      )
  before, after = (
    rows.take(table, [places[identity] for identity in shared])
    for table, places in zip((first, second), found, strict=True)
  )
  return before, after, notes


def _identities(table: Table) -> list[tuple[Any, ...]]:
  """Returns what tells each row from the others, and is alike in both."""
  columns = [c for c in ("key", "way", "language", "query") if c in table]
  met: Counter[tuple[Any, ...]] = Counter()
  identities = []
  for row in zip(*(table[column] for column in columns), strict=True):
    identities.append((*row, met[row]))  # Names may occur more than once.
    met[row] += 1
  return identities


def _check_labels(before: Table, after: Table, places) -> None:
  if rows.is_retrieval(before):
    return
  unlike = [
    (key, a, b)
    for key, a, b in zip(
      before["key"], before["label"], after["label"], strict=True
    )
    if a != b
  ]
  if unlike:
    key, a, b = unlike[0]
    raise UserError(
      f"{places[0]} and {places[1]}: have other labels for {len(unlike):,} of "
      f"{len(before['key']):,} images, such as {key}: {a!r} and {b!r}"
    )


def _right(table: Table) -> list[bool]:
  return table["right@1" if rows.is_retrieval(table) else "right"]


def _changes(before: Table, after: Table) -> list[Changes]:
  ways = before.get("way", [""] * len(before["key"]))
  found = []
  for way in dict.fromkeys(ways):
    own = [i for i, other in enumerate(ways) if other == way]
    pairs = [(_right(before)[i], _right(after)[i]) for i in own]
    better, worse = pairs.count((False, True)), pairs.count((True, False))
    once = len({before["key"][i] for i in own}) == len(own)
    p = None
    if once:
      # Of those that changed each way is as likely, where nothing is better.
      count = max(better + worse, 1)
      p = float(stats.binomtest(min(better, worse), count).pvalue)
      p = p if better + worse else 1.0
    found.append(Changes(way, better, worse, p))
  return found


def _changed(before: Table, after: Table) -> Table:
  """Returns what is not right any more, then what is right now."""
  pairs = list(zip(_right(before), _right(after), strict=True))
  places = [i for i, (a, b) in enumerate(pairs) if a and not b]
  places += [i for i, (a, b) in enumerate(pairs) if b and not a]
  was = rows.take(before, places)
  then = rows.take(after, places)
  same = ("way", "language", "key", "row", "query", "label")
  table = {name: was[name] for name in same if name in was}
  table["change"] = [BETTER if right else WORSE for right in _right(then)]
  for name in ("predicted", "first", "score", "rank", "label_rank"):
    if name in was and name in then:
      table[f"{name}_before"] = was[name]
      table[f"{name}_after"] = then[name]
  return table


def _unlike(first: Evaluation, second: Evaluation) -> list[str]:
  """Says in which fields the two sections differ."""
  if not first.spec or not second.spec:
    return []
  names = dict.fromkeys([*first.spec, *second.spec])
  unlike = [
    f"{name} ({first.spec.get(name)!r}, {second.spec.get(name)!r})"
    for name in names
    if name not in _HOW and first.spec.get(name) != second.spec.get(name)
  ]
  return [f"The evaluations differ in {', '.join(unlike)}"] if unlike else []
