"""Embeddings as two towers make them, in any number: rows and queries.

Rows are like those of images, and half of the queries like those of texts:

- Rows come in subjects: 1,000 broad ones of narrow ones each, in sizes that
  follow Zipf's law. Directions have the variance of a power law, so that 64 of
  768 carry most of it.
- All images share a direction, and all texts another (the modality gap,
  arXiv:2203.02053): two images are alike at a cosine of 0.5, an image and its
  text at less than that.
- A query by text is what its row means, with the texts' direction and noise in
  place of the images'; a query by image is a further image of some subject.

What the rows have for filters: `width` of 0 to 9,999, whatever a row means, and
`subject`, the broad one.

Shape letters: N rows, Q queries, E width of an embedding.
"""

from collections.abc import Iterator
import pathlib

import numpy as np

from big_siglip import embeddings
from big_siglip.embeddings import description as descriptions
from big_siglip.embeddings.given import STAMP
from big_siglip.embeddings.inputs import Inputs

SHARD = 10_000
_BROAD = 1_000
_NARROW = 10_000
_POWER = 1.0  # Of the spectrum: variance number i is (i + 1) ** -power.
_BROADLY, _NARROWLY, _ALONE = 0.5, 0.3, 0.2  # Shares of a row's variance.
_SHARED = 1.0  # Length of the images' direction, against that of the rest.
_NOISE = 1.5  # Of a text, likewise.


class World:
  """Where rows and queries come from; the same for the same seed."""

  def __init__(self, width: int, seed: int = 0):
    """Draws the subjects.

    Args:
      width: of an embedding.
      seed: of all that is drawn.
    """
    rng = np.random.default_rng(seed)
    self._width, self._seed = width, seed
    spectrum = np.arange(1, width + 1, dtype=np.float32) ** -_POWER
    self._scale = np.sqrt(spectrum / spectrum.sum())
    # Or the axes themselves would be the best ones to cut along.
    self._turn = np.linalg.qr(rng.standard_normal((width, width)))[0]
    self._turn = self._turn.astype(np.float32)
    broad = self._draw(rng, _BROAD) * _BROADLY**0.5
    self._broad_of = rng.integers(0, _BROAD, _NARROW)
    narrow = self._draw(rng, _NARROW) * _NARROWLY**0.5
    self._subjects = broad[self._broad_of] + narrow
    odds = 1 / np.arange(1, _NARROW + 1)
    self._odds = odds / odds.sum()
    self._image, self._text = (
      _unit(rng.standard_normal((2, width), np.float32)) * _SHARED
    )

  def rows(self, number: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns one block of rows NE float32, and their broad subjects N."""
    meaning, subjects = self._meaning(number, count)
    return _unit(self._image + meaning), self._broad_of[subjects]

  def queries(self, count: int) -> dict[str, np.ndarray]:
    """Returns QE float32 of each kind: by image, which is no row, by text."""
    meaning, _ = self._meaning(2**31, count)
    rng = np.random.default_rng((self._seed, 2**31 + 1))
    noise = self._draw(rng, count) * _NOISE
    return {
      "image": _unit(self._image + meaning),
      "text": _unit(self._text + meaning + noise),
    }

  def _meaning(self, number: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng((self._seed, number))
    subjects = rng.choice(_NARROW, count, p=self._odds)
    alone = self._draw(rng, count) * _ALONE**0.5
    return self._subjects[subjects] + alone, subjects

  def _draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns vectors of length 1 on average, of the spectrum."""
    drawn = rng.standard_normal((count, self._width), np.float32)
    return (drawn * self._scale) @ self._turn


def write(
  folder: pathlib.Path, world: World, count: int, width: int, dtype: str
) -> None:
  """Writes rows as `big-siglip embed` would; goes on where it was killed."""
  rng = np.random.default_rng(1)
  widths = rng.integers(0, 10_000, count)
  keys = [f"{i:09}.jpg" for i in range(count)]
  inputs = Inputs(pathlib.Path("nowhere"), keys, others={"subject": [0]})
  model = dict(checkpoint="none", parameters="p", width=width, preprocessing={})
  made = descriptions.describe(inputs, model, dtype, SHARD)
  writer = embeddings.Writer(folder, made)
  for number in writer.missing:
    part = made.shard(number)
    rows, subjects = world.rows(number, len(part))
    fields = [
      {"width": int(widths[i]), "height": 1, "subject": int(subject)}
      | dict.fromkeys(STAMP)
      for i, subject in zip(part, subjects, strict=True)
    ]
    writer.write(number, [keys[i] for i in part], None, rows, [], None, fields)
  writer.close()


def describe(world: World) -> Iterator[str]:
  """Yields what one may compare with embeddings of a model at hand."""
  rows, _ = world.rows(0, SHARD)
  queries = world.queries(500)
  other = rows[np.random.default_rng(0).permutation(len(rows))]
  yield f"two rows: cosine {_mean(rows, other):.2f} on average"
  yield (
    "a query's nearest of 10,000 rows: "
    + ", ".join(
      f"{(values @ rows.T).max(1).mean():.2f} by {kind}"
      for kind, values in queries.items()
    )
  )
  variance = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
  share = np.cumsum(variance) / variance.sum()
  yield (
    f"directions that carry half, 90 % of the variance: "
    f"{np.searchsorted(share, 0.5) + 1}, {np.searchsorted(share, 0.9) + 1}"
  )


def _mean(rows: np.ndarray, others: np.ndarray) -> float:
  return float((rows * others).sum(1).mean())


def _unit(rows: np.ndarray) -> np.ndarray:
  return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
