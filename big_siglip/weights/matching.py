"""Whether a file's arrays are those of a model: what is told where not."""

import collections
from collections.abc import Mapping, Sequence, Set
import math
import re

from absl import logging

from big_siglip.errors import UserError

_MOST_LINES = 20  # More of them help nobody.
_MOST_PREFIXES = 3
_LARGEST_SCALE = 88.0  # exp of it is about the last that float32 holds.
_USUAL_SCALE = 9.0  # exp of it is 8,103; trained models have about 100.
Shapes = Mapping[str, tuple[int, ...]]


def problems(theirs: Shapes, wanted: Shapes, notes: Sequence[str]) -> list[str]:
  """Returns a line for each array that is missing, surplus or misshapen.

  Of many lines some of each kind are shown, since what is surplus tells what
  became of the missing.

  Args:
    theirs: {key: shape} of a file.
    wanted: the same of the model.
    notes: what was done to the names; said first.
  """
  groups = {
    "missing": [f"{key}: missing" for key in wanted if key not in theirs],
    "surplus": [f"{key}: surplus" for key in theirs if key not in wanted],
    "of another shape": [
      f"{key}: has shape {list(theirs[key])}, must have {list(shape)}"
      for key, shape in wanted.items()
      if key in theirs and not _fits(tuple(theirs[key]), shape)
    ],
  }
  notes = [*notes, *_prefixes(wanted.keys() - theirs, theirs.keys() - wanted)]
  lines = _shown(groups, _MOST_LINES - len(notes))
  return [*notes, *lines] if lines else []


def _prefixes(missing: Set[str], surplus: Set[str]) -> list[str]:
  """Returns a line for each start without which names would be right."""
  counts: collections.Counter[str] = collections.Counter()
  for name in surplus:
    for dot in re.finditer(r"[./]", name):
      if name[dot.end() :] in missing:
        counts[name[: dot.end()]] += 1
  return [
    f"{count} surplus names are missing ones with {start!r} before them"
    for start, count in counts.most_common(_MOST_PREFIXES)
  ]


def _fits(theirs: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
  return theirs == wanted or math.prod(theirs) == math.prod(wanted) == 1


def _shown(groups: Mapping[str, Sequence[str]], most: int) -> list[str]:
  """Returns up to `most` lines, of each group some."""
  ordered = sorted(filter(groups.get, groups), key=lambda g: len(groups[g]))
  cut: dict[str, Sequence[str]] = {}
  for position, name in enumerate(ordered):
    share = most // (len(ordered) - position)
    lines = groups[name]
    if len(lines) > share:
      more = f"and {len(lines) - share + 1} more {name}"
      lines = [*lines[: share - 1], more]
    cut[name] = lines
    most -= len(lines)
  return [line for name in groups for line in cut.get(name, ())]


def check_scale(value: float, name: str) -> None:
  """Looks at the logarithm of the logits' multiplier.

  Args:
    value: the logarithm.
    name: what messages call it.

  Raises:
    UserError: its exponential is no float32.
  """
  if value > _LARGEST_SCALE:
    raise UserError(
      f"{name}={value:g}: must be the logarithm of the scale, at most "
      f"{_LARGEST_SCALE:g}, since exp({value:g}) is infinite; if it is the "
      "scale itself, its logarithm belongs there"
    )
  if value > _USUAL_SCALE:
    logging.warning(
      "%s=%g: cosines are multiplied with its exponential, %.0f; if it is the "
      "scale itself, its logarithm belongs there",
      name,
      value,
      math.exp(value),
    )
