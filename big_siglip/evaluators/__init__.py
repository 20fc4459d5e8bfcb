"""Evaluators: from parameters to metrics, in float32.

To add one: a frozen dataclass whose call takes parameters and returns a
`Result`, in a file of its own, a branch in `make_evaluator`, and its fields in
`big_siglip.schema.fields.EVALUATIONS`.
"""

from collections.abc import Callable, Sequence
import hashlib
from typing import Any

import numpy as np

from big_siglip.data.batch import Batch
from big_siglip.data.preprocessing import Preprocess
from big_siglip.data.sources import Example, Source
from big_siglip.errors import BadExample, UserError
from big_siglip.evaluators import dense
from big_siglip.evaluators.answers import Answers
from big_siglip.evaluators.calibration import Calibration
from big_siglip.evaluators.captions import CaptionedImages, open_captions
from big_siglip.evaluators.classes import Classes, merge_equal, read_classes
from big_siglip.evaluators.classification import ZeroShotClassification
from big_siglip.evaluators.embed import (
  Embedders,
  exact_model,
  make_embedders,
)
from big_siglip.evaluators.health import LossHealth
from big_siglip.evaluators.linear import Features, FewShot, LinearProbe
from big_siglip.evaluators.loading import Loader, owners
from big_siglip.evaluators.patches import make_sights, Sights
from big_siglip.evaluators.prompts import fill_templates, read_templates
from big_siglip.evaluators.result import Result
from big_siglip.evaluators.retrieval import Retrieval
from big_siglip.models.resolution import Resolution

__all__ = [
  "Embedders",
  "Evaluator",
  "exact_model",
  "Result",
  "make_embedders",
  "make_evaluator",
  "make_sights",
]

Evaluator = Callable[[Any], Result]


def make_evaluator(
  spec: Any,
  *,
  open_split: Callable[[str], Source],
  preprocess: Preprocess,
  embedders: Embedders,
  sights: Sights | None = None,
) -> Evaluator:
  """Returns the function from parameters to a `Result` that `spec` asks for.

  All processes must call it together; all get the same numbers. An image that
  cannot be read is left out, named in the log and counted in "skipped".

  Args:
    spec: a section of `config.evals`: kind, data, split, batch_size (rows that
      each device embeds at once: so the last bit of an embedding depends on
      them, but not on the number of devices) and the kind's own fields.
    open_split: opens a split of the data set; captions are read here, once.
    preprocess: what comes before the towers.
    embedders: see `make_embedders`.
    sights: see `patches.make_sights`; for the kinds of `dense` alone.

  Raises:
    UserError: an unknown kind, or what does not fit the data set.
  """
  where = f"data={spec.data!r}"
  if file := spec.get("captions_file"):
    where = f"captions_file={file!r}"
  if spec.kind in dense.KINDS and sights is not None:
    sight = sights(Resolution(spec.size, spec.stride))
    loader = Loader(where, sight.preprocess, spec.batch_size, embedders.devices)
    return dense.make_dense(spec, open_split, loader, embedders, sight)
  loader = Loader(where, preprocess, spec.batch_size, embedders.devices)
  match spec.kind:
    case "classification":
      return _classification(spec, open_split(spec.split), loader, embedders)
    case "retrieval":
      return _retrieval(spec, _captioned(spec, open_split), loader, embedders)
    case "fewshot":
      features = _features(spec, open_split, loader, embedders)
      return FewShot(features, tuple(spec.shots), spec.seeds, spec.l2)
    case "linear_probe":
      features = _features(spec, open_split, loader, embedders)
      return LinearProbe(features, tuple(spec.penalties))
    case "calibration":
      source = _captioned(spec, open_split)
      return Calibration(
        images=loader.images(source),
        captions=loader.captions(texts_of(source)),
        num_images=len(source),
        embedders=embedders,
        prior=spec.prior,
      )
    case "loss_health":
      source = _captioned(spec, open_split)
      texts = texts_of(source)
      return LossHealth(
        images=loader.images(source, _digest),
        captions=loader.captions(texts),
        texts=texts,
        num_images=len(source),
        embedders=embedders,
        loss_batch_size=spec.loss_batch_size,
      )
  raise UserError(f"config.evals: kind={spec.kind!r}: is not known")


def _classification(spec, source, loader, embedders) -> ZeroShotClassification:
  classes, answers = classes_of(spec, source)
  templates = read_templates(spec.templates, spec.templates_file)
  prompts = fill_templates(templates, classes.names, spec.canonicalize)
  return ZeroShotClassification(
    images=loader.images(source, answers_of(answers)),
    prompts=loader.texts([text for group in prompts for text in group]),
    prompt_classes=owners(prompts),
    num_images=len(source),
    names=tuple(names[0] for names in classes.names),
    template=templates[0],
    embedders=embedders,
  )


def _retrieval(spec, source, loader, embedders) -> Retrieval:
  if isinstance(source, CaptionedImages):
    captions = {k: loader.captions(texts) for k, texts in source.texts.items()}
  else:
    captions = {"": loader.captions(texts_of(source, spec.max_captions))}
  return Retrieval(loader.images(source), captions, len(source), embedders)


def _features(spec, open_split, loader, embedders) -> Features:
  sources = [open_split(split) for split in (spec.train_split, spec.split)]
  classes, answers = classes_of(spec, sources[0])
  train, test = (loader.images(s, answers_of(answers)) for s in sources)
  return Features(
    train=train,
    test=test,
    num_images=(len(sources[0]), len(sources[1])),
    names=tuple(names[0] for names in classes.names),
    embed=embedders.features,
  )


def classes_of(spec: Any, source: Source) -> tuple[Classes, Answers]:
  """Returns the classes of a data set, and which are right for an image.

  Args:
    spec: a section of `config.evals`: kind, data, label_key, classes_file and
      answers_file.
    source: the examples.

  Raises:
    UserError: it has no labels, or its classes have no names.
  """
  names: Sequence[str] | None = source.class_names
  numbers: list[int] = []
  fields = getattr(source, "field_names", ())
  there = f" among {', '.join(fields)}" if fields else ""
  if not names and getattr(source, "label_key", None):
    numbers = list(source.label_numbers())
  if not names and not numbers and spec.answers_file is None:
    raise UserError(
      f"config.evals: data={spec.data!r}: must have labels for kind="
      f"{spec.kind!r}, and none is found by its type or name{there}: set "
      "label_key, or answers_file"
    )
  named = names or spec.answers_file or spec.classes_file
  if spec.kind == "classification" and not named:
    raise UserError(
      f"config.evals: label_key={source.label_key!r}: its labels are numbers, "
      f"{numbers[0]} ... {numbers[-1]}; classes_file must name them, or "
      f"label_key a field of names{there}"
    )
  classes = read_classes(spec.classes_file, names, numbers)
  if spec.kind == "classification":
    classes = merge_equal(classes)
  return classes, Answers(spec.answers_file, classes)


def _captioned(spec, open_split) -> Source:
  file = spec.get("captions_file")
  if file is None:
    return open_split(spec.split)
  return open_captions(
    file,
    spec.path,
    split=spec.split,
    max_captions=spec.max_captions,
    language=spec.language,
  )


def texts_of(source, most: int | None = None) -> list[tuple[str, ...]]:
  """Returns the captions of every image; none where it is no good example."""
  if isinstance(source, CaptionedImages):  # Knows them without the images.
    by_image = zip(*source.texts.values(), strict=True)
    return [sum(texts, ()) for texts in by_image]
  captions = []
  for index in range(len(source)):
    try:
      captions.append(tuple(source[index].texts[:most]))
    except BadExample:  # Named and counted when the images are read.
      captions.append(())
  return captions


def answers_of(answers: Answers) -> Callable[[Example], Batch]:
  """Returns the function from an example to its array "answers", padded."""

  def extra(example: Example) -> Batch:
    right = answers.of(example)
    padded = [*right, *[-1] * (answers.width - len(right))]
    return {"answers": np.array(padded, np.int32)}

  return extra


def _digest(example: Example) -> Batch:
  """Returns 64 bits that are equal for equal image files."""
  digest = hashlib.sha256(bytes(example.image)).digest()
  return {"digest": np.frombuffer(digest[:8], np.int32)}
