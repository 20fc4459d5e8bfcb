"""Evaluators: from parameters to metrics, in float32.

To add one: a frozen dataclass whose call takes parameters and returns
{name: number}, in a file of its own, and a branch in `make_evaluator`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from big_siglip.data.pipeline import Batch, eval_batches
from big_siglip.data.preprocess import Preprocess
from big_siglip.data.sources import Source
from big_siglip.errors import BadExample, UserError
from big_siglip.evaluators.classification import (
  fill_templates,
  ZeroShotClassification,
)
from big_siglip.evaluators.embed import Embedders, make_embedders
from big_siglip.evaluators.retrieval import Retrieval

__all__ = ["Embedders", "Evaluator", "make_embedders", "make_evaluator"]

Evaluator = Callable[[Any], dict[str, float]]


def make_evaluator(
  spec: Any, *, source: Source, preprocess: Preprocess, embedders: Embedders
) -> Evaluator:
  """Returns the function from parameters to metrics that `spec` asks for.

  All processes must call it together; all get the same numbers. An image that
  cannot be read is left out, named in the log and counted in "skipped".

  Args:
    spec: a section of `config.evals`: kind ("classification" or "retrieval"),
      data, batch_size (over all processes) and, for classification, templates.
    source: the examples; their captions are read here, once.
    preprocess: without augmentation.
    embedders: see `make_embedders`.

  Raises:
    UserError: an unknown kind, a data set without labels, a bad template.
  """
  if spec.kind == "classification":
    if not source.class_names:
      raise UserError(
        f"config.evals: data={spec.data!r}: must have labels for kind="
        "'classification'; this data set has captions alone"
      )
    prompts = fill_templates(spec.templates, source.class_names)
    return ZeroShotClassification(
      images=_image_batches(source, preprocess, spec.batch_size),
      prompts=_text_batches(prompts, preprocess, spec.batch_size),
      num_images=len(source),
      num_classes=len(source.class_names),
      embedders=embedders,
    )
  if spec.kind == "retrieval":
    captions = [source[index].texts for index in range(len(source))]
    texts = [text for group in captions for text in group]
    return Retrieval(
      images=_image_batches(source, preprocess, spec.batch_size),
      texts=_text_batches(texts, preprocess, spec.batch_size),
      text_images=np.repeat(np.arange(len(source)), list(map(len, captions))),
      num_images=len(source),
      embedders=embedders,
    )
  raise UserError(
    f"config.evals: kind={spec.kind!r}: must be classification or retrieval"
  )


def _image_batches(
  source: Source, preprocess: Preprocess, batch_size: int
) -> Callable[[], Iterator[Batch]]:
  """Returns the function that starts a pass over the images and labels."""

  def load(index: int) -> Batch:
    example = source[index]
    try:
      # It draws a caption, which nobody looks at.
      image = preprocess(example, np.random.default_rng(0))["image"]
    except BadExample as error:
      raise BadExample(f"{example.name}: {error}", error.kind) from error
    label = -1 if example.label is None else example.label
    return {
      "image": image,
      "label": np.int32(label),
      "index": np.int32(index),
    }

  return lambda: _batches(len(source), load, batch_size)


def _text_batches(
  texts: list[str], preprocess: Preprocess, batch_size: int
) -> Callable[[], Iterator[Batch]]:
  """Returns the function that starts a pass over the texts."""
  tokens = preprocess.tokenizer(texts, preprocess.text_length)

  def load(index: int) -> Batch:
    return {"text": tokens[index], "index": np.int32(index)}

  return lambda: _batches(len(texts), load, batch_size)


def _batches(
  length: int, load: Callable[[int], Batch], batch_size: int
) -> Iterator[Batch]:
  """Starts a pass of this process, in batches no larger than needed."""
  processes = jax.process_count()
  return eval_batches(
    length,
    load,
    batch_size=min(batch_size, -(-length // processes) * processes),
    process_index=jax.process_index(),
    process_count=processes,
  )
