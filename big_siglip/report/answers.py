"""Images that a model got wrong, and such as two models answer otherwise."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from big_siglip import progress
from big_siglip.data.sources import Source
from big_siglip.errors import BadExample, UserError
from big_siglip.evaluation import compare, rows
from big_siglip.evaluation.reading import Evaluation
from big_siglip.evaluators.result import Table
from big_siglip.report import thumbnails
from big_siglip.report.runs import Run
from big_siglip.report.samples import first_line
from big_siglip.report.tables import Cell, Row, value_text
from big_siglip.report.thumbnails import Picture
from big_siglip.report.wanted import DataKey, open_data

NOTHING = "nothing"  # The answer of an embedding that is not finite.
_CARDS = 48


class Card(NamedTuple):
  """An image, or a query, and what was answered.

  Attributes:
    picture: None where the file is not at hand.
    key: what the image is called.
    asked: the right class, or the query.
    answers: (number of the run, whether right, what it said, the probability of
      that, where there is one) each.
  """

  picture: Picture | None
  key: str
  asked: str
  answers: Sequence[tuple[int, bool, str, float | None]]


class Wrong(NamedTuple):
  """What one run got wrong in one evaluation.

  Attributes:
    run: its number.
    name: of the evaluation.
    count: how many images are wrong.
    images: of how many.
    cards: the first of them.
    notes: what a reader has to know.
  """

  run: int
  name: str
  count: int
  images: int
  cards: Sequence[Card]
  notes: Sequence[str]


class Compared(NamedTuple):
  """One evaluation of two runs.

  Attributes:
    runs: their numbers.
    name: of the evaluation; "" where nothing could be compared.
    images: how many are in both.
    rows: metric, both values, difference with its interval.
    said: how many changed, a sentence each way.
    count: how many did, in all.
    cards: the first of them.
    notes: what a reader has to know.
  """

  runs: tuple[int, int]
  name: str = ""
  images: int = 0
  rows: Sequence[Row] = ()
  said: Sequence[str] = ()
  count: int = 0
  cards: Sequence[Card] = ()
  notes: Sequence[str] = ()


def wrong(runs: Sequence[Run], pictures: bool) -> list[Wrong]:
  """Returns the images that each run got wrong, of evaluations with rows.

  Args:
    runs: those without results of big-siglip evaluate are passed by.
    pictures: whether to look for the images themselves.
  """
  found = []
  for number, run in enumerate(runs):
    for evaluation in run.results.evaluations.values() if run.results else ():
      if not evaluation.has_answers:
        continue
      table, notes = _rows(evaluation)
      if table is None or rows.is_retrieval(table):
        continue
      bad = [i for i, right in enumerate(table["right"]) if not right]
      shown = rows.take(table, bad[:_CARDS])
      images, more = _pictures(run, evaluation, shown, pictures)
      cards = [
        Card(
          images.get(row), key, label, [(number, False, said or NOTHING, score)]
        )
        for row, key, label, said, score in zip(
          *(shown[c] for c in ("row", "key", "label", "predicted")),
          shown.get("probability", [None] * len(shown["key"])),
          strict=True,
        )
      ]
      count = len(table["key"])
      found.append(
        Wrong(number, evaluation.name, len(bad), count, cards, notes + more)
      )
  return found


def compared(runs: Sequence[Run], pictures: bool) -> list[Compared]:
  """Returns the first run with results against each of the others."""
  numbers = [i for i, run in enumerate(runs) if run.results]
  found = []
  for other in numbers[1:]:
    pair = (numbers[0], other)
    first, second = (runs[i].results for i in pair)
    try:
      comparisons = compare.compare(first, second)
    except UserError as error:
      found.append(Compared(pair, notes=[f"Not compared: {error}."]))
      continue
    found += [_compared(runs, pair, one, pictures) for one in comparisons]
  return found


def _compared(runs, pair, one: compare.Comparison, pictures: bool) -> Compared:
  changed = rows.take(one.changed, range(min(len(one.changed["key"]), _CARDS)))
  run = runs[pair[0]]
  evaluation = run.results.evaluations[one.name.split(" and ")[0]]
  images, more = _pictures(run, evaluation, changed, pictures)
  answer = "first" if "query" in changed else "predicted"
  cards = [
    Card(
      images.get(row),
      key,
      asked,
      [
        (pair[0], change == compare.WORSE, before or NOTHING, None),
        (pair[1], change == compare.BETTER, after or NOTHING, None),
      ],
    )
    for row, key, asked, change, before, after in zip(
      *(changed["row"], changed["key"]),
      changed.get("label", changed.get("query")),
      *(changed["change"], changed[f"{answer}_before"]),
      changed[f"{answer}_after"],
      strict=True,
    )
  ]
  return Compared(
    pair,
    one.name,
    one.images,
    [_row(one.name, difference) for difference in one.differences],
    [_sentence(change) for change in one.changes],
    len(one.changed["key"]),
    cards,
    [*one.notes, *more],
  )


def _row(name: str, difference: compare.Difference) -> Row:
  metric, before, after, low, high = difference
  texts = [value_text(f"{name}/{metric}", value) for value in (before, after)]
  change = f"{100 * (after - before):+.1f} points"
  limits = f"{100 * low:+.1f} to {100 * high:+.1f}"
  clear = low > 0 or high < 0
  return Row(metric, [*map(Cell, texts), Cell(change, limits, clear)])


def _sentence(change: compare.Changes) -> str:
  way = f"{change.way.replace('_', ' ')}: " if change.way else ""
  p = "" if change.p is None else f" McNemar's exact test: p = {change.p:.2g}."
  return (
    f"{way}{change.better:,} went from wrong to right, {change.worse:,} from "
    f"right to wrong.{p}"
  )


def _rows(evaluation: Evaluation) -> tuple[Table | None, list[str]]:
  if evaluation.file is None:
    return None, []
  try:
    return evaluation.rows(), []
  except UserError as error:
    logging.warning("%s", error)
    return None, [str(error)]


def _pictures(
  run: Run, evaluation: Evaluation, table: Table, wanted: bool
) -> tuple[dict[int, Picture], list[str]]:
  """Returns pictures by row number, and why there are none."""
  if not wanted or not table["key"] or not evaluation.spec:
    return {}, []
  spec, found = dict(evaluation.spec), {}
  config: Mapping[str, Any] = {**run.config, "evals": {evaluation.name: spec}}
  try:
    key = DataKey.of(spec, config.get("data", {}))
    source = open_data(key, config, evaluation.name)
    with progress.waiting(f"reading images of {run.name}"):
      for row, name in zip(table["row"], table["key"], strict=True):
        if made := _picture(source, row, name):
          found[row] = made
  except Exception as error:  # A data set that is gone, a config of old.
    logging.warning("%s has no pictures: %s", run.name, error)
    return {}, [f"No pictures: {first_line(error)}."]
  return found, []


def _picture(source: Source, row: int, name: str) -> Picture | None:
  """Returns an example's picture; None where it is not there any more."""
  try:
    example = source[row]
    if example.name != name:
      return None
    return thumbnails.picture(thumbnails.shrink(example), name)
  except (BadExample, IndexError):
    return None
