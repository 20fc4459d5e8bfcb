"""Several queries at once: each on its own, or their mean.

Shape letters: Q queries, E width of an embedding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from big_siglip.errors import UserError
from big_siglip.page.gallery import Gallery
from big_siglip.page.scorer import File, Scorer


class Asked(NamedTuple):
  """What is looked for.

  Attributes:
    files: uploaded images.
    lines: sentences.
    likes: ids of rows; these are not found again.
    together: whether one answer is asked for, of what is near to all of them;
      else there is one for each.
  """

  files: Sequence[File]
  lines: Sequence[str]
  likes: Sequence[int]
  together: bool


def search(
  scorer: Scorer, gallery: Gallery, asked: Asked, top: int, where: str | None
) -> list[dict[str, Any]]:
  """Returns {"parts": what was asked, "results": rows}, one or several.

  Args:
    scorer: embeds what is new.
    gallery: is searched.
    asked: Q queries.
    top: rows of each answer at most.
    where: only rows of which this is true.

  Raises:
    UserError: an image cannot be read, there is no row of an id, the filter is
      no good, or the queries' mean is zero.
  """
  rows, parts = _embed(scorer, gallery, asked)
  if asked.together:
    rows, groups = _mean(rows), [parts]
  else:
    groups = [[part] for part in parts]
  found = gallery.search(rows, top, where, asked.likes)
  # Trained for pairs of an image and a text, and for no others.
  other = "text" if gallery.kind == "images" else "image"
  for own, results in zip(groups, found, strict=True):
    pair = len(own) == 1 and other in own[0]
    for row in results:
      row["probability"] = scorer.probability(row["score"]) if pair else None
  return [
    {"parts": own, "results": results}
    for own, results in zip(groups, found, strict=True)
  ]


def _embed(
  scorer: Scorer, gallery: Gallery, asked: Asked
) -> tuple[np.ndarray, list[dict[str, Any]]]:
  """Returns QE float32, and what each of them is."""
  parts: list[dict[str, Any]] = [{"text": line} for line in asked.lines]
  parts += [{"image": file.name} for file in asked.files]
  rows = list(scorer.embed_queries(asked.files, asked.lines))
  if asked.likes:
    embedded, likes = gallery.find(asked.likes)
    rows += list(embedded)
    parts += [{"like": row} for row in likes]
  return np.array(rows, np.float32), parts


def _mean(rows: np.ndarray) -> np.ndarray:
  """Returns the mean [1, E] of queries, of length 1."""
  mean = rows.mean(axis=0, keepdims=True)
  length = float(np.linalg.norm(mean))
  if length < 1e-6:
    raise UserError("query: its parts cancel each other out")
  return mean / length
