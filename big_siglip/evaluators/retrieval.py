"""Retrieval: the captions of an image, and the image of a caption.

Shape letters: Q queries, C candidates, D embedding width.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
from typing import Any

import numpy as np

from big_siglip.evaluators.embed import embed_all, Embedders

# Similarities of unit vectors closer than this are equal: a float32 dot product
# is exact to about 1e-7, and which way it errs depends on batch and device.
TIE = 1e-6
_BLOCK_ELEMENTS = 2**24  # Similarities in memory at once: 64 MiB.


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """Recall at k among all images and all captions of a data set.

  An image that cannot be read takes its captions out of the candidates too.

  Attributes:
    images: returns padded batches with "image", "index" and "mask".
    texts: returns padded batches with "text", "index" and "mask".
    text_images: number of the image that each text describes; an image may
      have several.
    num_images: how many there are, with those that cannot be read.
    embedders: embed images and texts.
  """

  images: Callable[[], Iterable[Mapping[str, np.ndarray]]]
  texts: Callable[[], Iterable[Mapping[str, np.ndarray]]]
  text_images: np.ndarray
  num_images: int
  embedders: Embedders

  def __call__(self, params: Any) -> dict[str, float]:
    """Returns "image_to_text/recall@K", "text_to_image/recall@K", "skipped"."""
    text, values = embed_all(
      self.embedders.text, params, self.texts(), inputs="text"
    )
    text_images = self.text_images[values["index"]]
    image, values = embed_all(
      self.embedders.image, params, self.images(), inputs="image"
    )
    images = values["index"]
    readable = np.isin(text_images, images)
    text, text_images = text[readable], text_images[readable]
    to_text = recall(image, text, images, text_images)
    to_image = recall(text, image, text_images, images)
    return {
      **{f"image_to_text/{name}": value for name, value in to_text.items()},
      **{f"text_to_image/{name}": value for name, value in to_image.items()},
      "skipped": float(self.num_images - len(images)),
    }


def recall(
  queries: np.ndarray,
  candidates: np.ndarray,
  query_ids: np.ndarray,
  candidate_ids: np.ndarray,
  ks: tuple[int, ...] = (1, 5, 10),
) -> dict[str, float]:
  """Returns the share of queries with a match among their k nearest candidates.

  A candidate matches a query of the same id. Ties count against the query: a
  match must be more similar, by more than `TIE`, than all but k - 1 of the
  candidates that do not match. So a model that embeds everything alike finds
  nothing, and neither does one whose embeddings are not numbers.

  Args:
    queries: QD float32 unit vectors.
    candidates: CD float32 unit vectors.
    query_ids: Q.
    candidate_ids: C; several candidates may have the same.
    ks: cut-offs; one above C counts every candidate.

  Returns:
    {"recall@1": ...}, each in [0, 1].
  """
  rows = max(_BLOCK_ELEMENTS // max(len(candidates), 1), 1)
  ranks = np.concatenate(
    [
      _ranks(
        queries[start : start + rows] @ candidates.T,
        query_ids[start : start + rows, None] == candidate_ids[None],
      )
      for start in range(0, len(queries), rows)
    ]
  )
  return {f"recall@{k}": float(np.mean(ranks < k)) for k in ks}


def _ranks(similarities: np.ndarray, matches: np.ndarray) -> np.ndarray:
  """Returns how many wrong candidates come before each query's best match.

  Args:
    similarities: QC.
    matches: QC bool.

  Returns:
    Q floats; infinite without a match, or without a finite one.
  """
  best = np.where(matches, similarities, -np.inf).max(axis=1)
  # Not "wrong >= best": the comparison must be true of a NaN as well.
  behind = similarities < best[:, None] - TIE
  before = (~behind & ~matches).sum(axis=1)
  return np.where(np.isfinite(best), before, np.inf)
