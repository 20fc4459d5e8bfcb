"""Embeds labels and images for `scores`, and tells how far it is.

Shape letters: N images, C labels, E embedding width.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
import dataclasses
import itertools
import pathlib

import numpy as np

from big_siglip import progress
from big_siglip.embeddings import AnyInputs
from big_siglip.errors import UserError
from big_siglip.evaluators.prompts import fill_templates
from big_siglip.trained.inference import Model

_BATCH = 64  # Images in memory at once.
_PROMPTS = 4096  # Texts of labels in memory at once.


@dataclasses.dataclass
class Counts:
  """How many images there were, and how many of them were none."""

  total: int = 0
  skipped: int = 0


def embed_labels(
  model: Model, names: Sequence[Sequence[str]], templates: Sequence[str]
) -> np.ndarray:
  """Returns CE: a unit vector for each label, the mean of its prompts' vectors.

  Args:
    model: the model.
    names: of each label.
    templates: sentences around a name, with "{}".

  Raises:
    UserError: the model gives no numbers for one.
  """
  prompts = fill_templates(templates, names)
  total = sum(map(len, prompts))
  parts = []
  with progress.Progress(total, "prompts") as show:
    # As many labels in each: few shapes to compile.
    for part in np.array_split(np.arange(len(names)), -(-total // _PROMPTS)):
      own = [prompts[i] for i in part.tolist()]
      parts.append(model.embed_classes(own))
      show.add(sum(map(len, own)))
  texts = np.concatenate(parts)
  bad = np.flatnonzero(~np.isfinite(texts).all(axis=1))
  if len(bad):
    raise UserError(
      f"--labels: the embeddings of {len(bad)} of {len(names)} labels are not "
      f"finite, such as that of {names[bad[0]][0]!r}"
    )
  return texts


def scored(
  model: Model,
  inputs: Sequence[tuple[str, AnyInputs]],
  logits: Callable[[np.ndarray], np.ndarray],
  counts: Counts,
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (image, its logits C); what cannot be read is named and counted.

  Args:
    model: the model.
    inputs: (what the user called them, the images).
    logits: embeddings NE -> NC.
    counts: is brought up to date.
  """
  for names, images in prepared(model, inputs, counts):
    rows = model.embed_prepared(images)[: len(names)]
    finite = np.isfinite(rows).all(axis=1)
    for name in itertools.compress(names, ~finite):
      progress.say(f"skipped: {name}: its embedding is not finite")
      counts.skipped += 1
    good = itertools.compress(names, finite)
    yield from zip(good, logits(rows[finite]), strict=True)


def prepared(
  model: Model,
  inputs: Sequence[tuple[str, AnyInputs]],
  counts: Counts,
) -> Iterator[tuple[list[str], list[np.ndarray]]]:
  """Yields names of images, and what the model sees of them, in batches.

  Args:
    model: the model.
    inputs: (what the user called them, the images).
    counts: is brought up to date; what cannot be read is named.

  Yields:
    n names, and n images or more: copies of the last fill a batch up, so that
    there is one shape to compile.
  """
  images = (
    (argument, one, index)
    for argument, one in inputs
    for index in range(len(one))
  )
  total = sum(len(one) for _, one in inputs)
  with (
    ThreadPoolExecutor() as threads,
    progress.Progress(total, "images") as show,
  ):
    while batch := list(itertools.islice(images, _BATCH)):
      names, arrays = _prepare(model, batch, threads)
      counts.total += len(batch)
      counts.skipped += len(batch) - len(names)
      arrays += arrays[-1:] * (min(total, _BATCH) - len(arrays))
      yield names, arrays
      show.add(len(batch))


def _prepare(
  model: Model,
  batch: Sequence[tuple[str, AnyInputs, int]],
  threads: Executor,
) -> tuple[list[str], list[np.ndarray]]:
  """Returns names and images of those that can be read."""

  def prepare(item):
    argument, inputs, index = item
    one = inputs.prepare(model, index)
    in_folder = not inputs.data and pathlib.Path(argument).is_dir()
    name = str(pathlib.Path(argument) / one.key) if in_folder else one.key
    return name, one

  names, images = [], []
  for name, one in threads.map(prepare, batch):
    if one.array is None:
      progress.say(f"skipped: {name}: {one.problem}")
      continue
    names.append(name)
    images.append(one.array)
  return names, images
