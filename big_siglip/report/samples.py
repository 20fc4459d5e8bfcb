"""What a report shows of a pool: predictions, heat map, retrieval."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from absl import logging
import numpy as np

from big_siglip import progress
from big_siglip.errors import naming
from big_siglip.report import maps, patches, retrieved, writing
from big_siglip.report import pool as pools
from big_siglip.report import wanted as data
from big_siglip.report.maps import Choice, USUAL
from big_siglip.report.pool import Answers, Guesses, Pool
from big_siglip.report.runs import Run
from big_siglip.report.thumbnails import Picture
from big_siglip.report.wanted import DataKey, Wanted
from big_siglip.trained import inference, loading

_T = TypeVar("_T")

_CARDS = 24  # Predictions.
_HEAT = 8  # Images and captions of the heat map.
_QUERIES = 5
_MAX_GROUPS = 3  # Data sets of one report.


class Group(NamedTuple):
  """Everything of one data set.

  Attributes:
    title: the data set.
    notes: what a reader has to know, a sentence each.
    images: how many images were searched.
    captions: how many captions were searched.
    right_counts: number of the run -> right predictions among all.
    cards: predictions; empty without classes.
    heat: {number of the run: probabilities [captions, images]}.
    heat_texts: captions of the heat map.
    heat_images: images of it.
    by_image: queries that are images.
    by_text: queries that are texts.
    seen: {number of the run: what its patches know}; of a run without decoder.
    told: {number of the run: what its decoder writes, and its patches know}.
  """

  title: str
  notes: list[str]
  images: int = 0
  captions: int = 0
  right_counts: Mapping[int, str] = {}
  cards: Sequence[Mapping[str, Any]] = ()
  heat: Mapping[int, Any] = {}
  heat_texts: Sequence[str] = ()
  heat_images: Sequence[Picture] = ()
  by_image: Sequence[Mapping[str, Any]] = ()
  by_text: Sequence[Mapping[str, Any]] = ()
  seen: Mapping[int, patches.Row] = {}
  told: Mapping[int, writing.Row] = {}


def groups(
  runs: Sequence[Run], count: int, choice: Choice = USUAL
) -> list[Group]:
  """Returns what there is to see, a group for each data set.

  Runs whose model cannot be loaded get a line in their `notes`; a data set that
  is gone, in its group's.

  Args:
    runs: the runs; those without a checkpoint are left out.
    count: examples of each data set; 0 for no pictures at all.
    choice: which patches are compared with texts.

  Raises:
    UserError: a tower lacks what is chosen.
  """
  if not count:
    return []
  models = {number: _load(run) for number, run in enumerate(runs)}
  models = {number: model for number, model in models.items() if model}
  if choice != USUAL:
    with naming({"kind": "--map_kind", "layer": "--map_layer"}):
      for model in models.values():
        maps.patches_of(model, choice)
  keys: dict[DataKey, dict[int, Wanted]] = {}
  for number in models:
    for key, asked in data.wanted(runs[number]).items():
      keys.setdefault(key, {})[number] = asked
  shown = list(keys.items())[:_MAX_GROUPS]
  made = [_group(runs, models, *item, count, choice) for item in shown]
  if left := [_title(key) for key in keys][_MAX_GROUPS:]:
    made[-1].notes.append(f"Data sets that are not shown: {'; '.join(left)}.")
  return made


def _load(run: Run) -> inference.Model | None:
  if run.checkpoint is None:
    return None
  try:
    model = loading.load(str(run.checkpoint))
  except Exception as error:  # Whatever the file system made of the bytes.
    logging.warning("%s cannot be loaded: %s", run.checkpoint, error)
    run.notes.append(
      f"Checkpoint {run.checkpoint.name} cannot be loaded, so there are no "
      f"pictures of this run: {first_line(error)}"
    )
    return None
  if not model.has_trained_bias:
    run.notes.append(
      f"The model {model.NO_SIGMOID} that mean anything: those of its pictures "
      "only order them."
    )
  return model


def _group(
  runs,
  models,
  key: DataKey,
  asked: Mapping[int, Wanted],
  count: int,
  choice: Choice,
) -> Group:
  notes = []
  first, own = next(iter(asked.items()))
  try:
    with progress.waiting(f"reading {_title(key)}"):
      source = data.open_data(key, runs[first].config, own.name)
      pool = pools.read_pool(source, count)
  except Exception as error:  # As below.
    logging.warning("%s cannot be shown: %s", _title(key), error)
    reason = f"this data set cannot be read ({first_line(error)})"
    return Group(_title(key), [f"No pictures: {reason}."])

  def each(asked: Mapping[int, Wanted], ask: Callable[..., _T], *rest: Any):
    return _each(runs, models, pool, asked, notes, ask, *rest)

  answers = each(asked, pools.ask)
  told: dict[int, writing.Row] = {}
  for number, own in asked.items():
    if writing.writes(runs[number]):
      wanted = {number: own}
      told |= each(wanted, writing.look, choice, runs[number].config)
  others = {number: own for number, own in asked.items() if number not in told}
  seen = each(others, patches.look, choice)
  if not answers:
    return Group(_title(key), notes, seen=seen, told=told)
  known = [runs[n].name for n in answers if data.trained_on(runs[n], key)]
  if known:
    notes.append(f"Not held out: trained on by {', '.join(known)}.")
  if pool.skipped:
    some = "; ".join(pool.skipped[:5])
    notes.append(f"{len(pool.skipped)} images cannot be read: {some}.")
  chosen = pools.distinct(pool, _HEAT)
  heat_images, heat_texts = ([pair[i] for pair in chosen] for i in (0, 1))
  guesses = {n: a.guesses for n, a in answers.items() if a.guesses is not None}
  return Group(
    title=_title(key),
    notes=notes,
    images=len(pool.index),
    captions=len(pool.texts),
    right_counts=_right_counts(guesses),
    cards=_cards(pool, guesses),
    heat=_heat(pool, answers, heat_images, heat_texts),
    heat_texts=[pool.texts[text] for text in heat_texts],
    heat_images=[retrieved.picture(pool, image) for image in heat_images],
    by_image=retrieved.by_image(pool, answers, heat_images[:_QUERIES]),
    by_text=retrieved.by_text(pool, answers, heat_texts[:_QUERIES]),
    seen=seen,
    told=told,
  )


def _each(
  runs,
  models,
  pool: Pool,
  asked: Mapping[int, Wanted],
  notes: list[str],
  ask: Callable[..., _T],
  *rest: Any,
) -> dict[int, _T]:
  """Returns what each run that can be asked says."""
  answers = {}
  for number, own in asked.items():
    try:
      with progress.waiting(f"asking {runs[number].name}"):
        answers[number] = ask(models[number], pool, own, *rest)
    except Exception as error:  # A config of other times, a file that is gone.
      logging.warning("%s cannot be shown: %s", runs[number].name, error)
      note = f"No pictures of {runs[number].name}: {first_line(error)}"
      if note not in notes:
        notes.append(note)
  return answers


def first_line(error: Exception) -> str:
  """Returns what an error says, in one line."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0][:200]


def _title(key: DataKey) -> str:
  place = f" in {key.path}" if key.path else ""
  return f"{key.name}, split {key.split}{place}"


def _right_counts(guesses: Mapping[int, Guesses]) -> dict[int, str]:
  return {
    number: f"{int(given.right.sum()):,} of {len(given.right):,}"
    for number, given in guesses.items()
  }


def _cards(pool: Pool, guesses: Mapping[int, Guesses]) -> list[dict[str, Any]]:
  """Returns predictions: those that runs disagree on, wrong ones, others."""
  if not guesses:
    return []
  first = next(iter(guesses.values()))
  names = np.stack([np.array(given.names) for given in guesses.values()])
  disagree = (names != names[0]).any(axis=0)
  right = np.all([given.right for given in guesses.values()], axis=0)
  order = np.lexsort((right, ~disagree))[:_CARDS]
  return [
    {
      "picture": retrieved.picture(pool, image),
      "right": first.labels[image],
      "answers": [
        {
          "run": number,
          "name": given.names[image],
          "caption": given.captions[image],
          "probability": float(given.probabilities[image]),
          "right": bool(given.right[image]),
        }
        for number, given in guesses.items()
      ],
    }
    for image in order
  ]


def _heat(pool: Pool, answers: Mapping[int, Answers], images, texts):
  """Returns {run: [[(probability, whether right)]]}, a row for each text."""
  return {
    number: [
      [
        (float(answer.texts[image, text]), bool(pool.right[image, text]))
        for image in images
      ]
      for text in texts
    ]
    for number, answer in answers.items()
  }
