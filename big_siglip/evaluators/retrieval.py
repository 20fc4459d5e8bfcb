"""Retrieval: the captions of an image, and the image of a caption."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from big_siglip.errors import UserError
from big_siglip.evaluators import tables
from big_siglip.evaluators.embed import Embedders, Rows
from big_siglip.evaluators.recall import find_first, rank_of_match
from big_siglip.evaluators.result import counted, Result, Table
from big_siglip.evaluators.scores import KS, recalls, Score, WAYS


class Captions(NamedTuple):
  """The captions of a data set in one language.

  Attributes:
    texts: padded batches with "text", "index" and "mask".
    images: the number of the image that each describes; one may have several.
    words: the captions themselves.
  """

  texts: Rows
  images: np.ndarray
  words: Sequence[str]


class Side(NamedTuple):
  """The images, or the captions of one language.

  Attributes:
    vectors: RD unit vectors.
    rows: R, the number of each in its data set.
    ids: R, the number of the image that each is, or describes.
    name: what to call a row.
  """

  vectors: np.ndarray
  rows: np.ndarray
  ids: np.ndarray
  name: Callable[[int], str]

  def of(self, chosen: np.ndarray) -> "Side":
    """Returns some of them, R bool."""
    arrays = (self.vectors[chosen], self.rows[chosen], self.ids[chosen])
    return Side(*arrays, self.name)


class Asked(NamedTuple):
  """Queries of one way and language, and where their matches stand.

  Attributes:
    language: of the captions; "" for a single one.
    way: one of `WAYS`.
    queries: what is looked for.
    candidates: what is searched.
    rank: R, the place of each query's best match, from 1 on; infinite for none.
  """

  language: str
  way: str
  queries: Side
  candidates: Side
  rank: np.ndarray


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """Recall at k among all images and all captions of a data set.

  An image that cannot be read takes its captions out of the candidates too.

  Attributes:
    images: padded batches with "image", "index" and "mask".
    captions: {language: captions}; a single language may be called "".
    num_images: how many there are, with those that cannot be read.
    embedders: embed images and texts.
  """

  images: Rows
  captions: Mapping[str, Captions]
  num_images: int
  embedders: Embedders

  def __post_init__(self):
    empty = [n for n, c in self.captions.items() if not len(c.images)]
    if empty or not self.captions:
      of = f" of {', '.join(empty)}" if any(empty) else ""
      raise UserError(f"retrieval: no caption{of} to find an image by")

  def __call__(self, params: Any) -> Result:
    """Returns "image_to_text/recall@K", "text_to_image/recall@K", "skipped".

    Of several languages each has its own, "fr/image_to_text/recall@K", beside
    their mean under the plain names. "nonfinite" is there where embeddings are
    not finite: how many.
    """
    vectors, values = self.images.embed(self.embedders.image, params)
    index = values["index"]
    images = Side(vectors, index, index, self.images.name)
    nonfinite = int((~values["finite"]).sum())
    asked: list[Asked] = []
    for language, captions in self.captions.items():
      texts, bad = self._texts(params, captions, index)
      # An image without a caption in this language asks for nothing, but is
      # there to be mistaken.
      asking = images.of(np.isin(index, texts.ids))
      sides = ((asking, texts), (texts, images))
      for way, (queries, candidates) in zip(WAYS, sides, strict=True):
        rank = 1 + rank_of_match(*_searched(queries, candidates))
        asked.append(Asked(language, way, queries, candidates, rank))
      nonfinite += bad
    scores = _scores(asked)
    metrics = {name: score.mean() for name, score in scores.items()}
    metrics["skipped"] = float(self.num_images - len(index))
    metrics |= counted(nonfinite)
    return Result(
      metrics,
      {"num_images": len(index)},
      images=len(index),
      scores=scores,
      rows=functools.partial(_rows, asked),
    )

  def _texts(
    self, params: Any, captions: Captions, images: np.ndarray
  ) -> tuple[Side, int]:
    """Returns the captions of these images; how many are not finite."""
    vectors, values = captions.texts.embed(self.embedders.text, params)
    rows = values["index"]
    side = Side(
      vectors, rows, captions.images[rows], captions.words.__getitem__
    )
    readable = np.isin(side.ids, images)
    return side.of(readable), int((~values["finite"][readable]).sum())


def _searched(queries: Side, candidates: Side):
  return queries.vectors, candidates.vectors, queries.ids, candidates.ids


def _scores(asked: Sequence[Asked]) -> dict[str, Score]:
  """Returns recall of both ways, and of several languages of each one."""
  return recalls(
    np.concatenate([np.full(len(one.rank), one.way) for one in asked]),
    np.concatenate([np.full(len(one.rank), one.language) for one in asked]),
    np.concatenate([one.queries.ids for one in asked]),
    np.concatenate([one.rank for one in asked]),
  )


def _rows(asked: Sequence[Asked]) -> Table:
  """Returns a row for each query.

  Columns: "way", "language" (if there are several), "key" and "row" (of the
  image that the query is or describes), "query", "right@1" ..., "rank" (of the
  first right one), "first" (what came first), "score", its cosine, and
  "right_score", that of the best right one.
  """
  table: dict[str, list[Any]] = {}
  for one in asked:
    queries, candidates = one.queries, one.candidates
    first = find_first(*_searched(queries, candidates))
    images = queries if one.way == WAYS[0] else candidates
    count = len(one.rank)
    part = {
      "way": [one.way] * count,
      "language": [one.language] * count,
      "key": list(map(images.name, queries.ids.tolist())),
      "row": queries.ids.tolist(),
      "query": list(map(queries.name, queries.rows.tolist())),
      **{f"right@{k}": (one.rank <= k).tolist() for k in KS},
      "rank": tables.places(one.rank),
      "first": [
        candidates.name(candidates.rows[place]) if place >= 0 else None
        for place in first.candidate.tolist()
      ],
      "score": tables.plain(first.score),
      "right_score": tables.plain(first.match_score),
    }
    for name, values in part.items():
      table.setdefault(name, []).extend(values)
  if not any(table["language"]):
    del table["language"]
  return table
