"""Correspondence without labels: does a patch know itself in another picture?

Each photo is shown twice: as the model sees it, and as a crop of known place,
size and side that is mirrored by lot. So the truth is exact, and nobody has to
draw it. A patch of the crop finds the most similar patch of the whole; PCK (the
share of points within a share of the image's side) is what DINO's papers tell.

Shape letters: L patches, C numbers of a patch, S pixels of a side.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
from typing import Any
import zlib

import jax
import numpy as np

from big_siglip import progress
from big_siglip.data import decoding, images, patches
from big_siglip.data.batch import Batch, Image
from big_siglip.data.preprocessing import Preprocess
from big_siglip.data.sources import Example
from big_siglip.errors import UserError
from big_siglip.evaluators import tables
from big_siglip.evaluators.embed import Embed, Rows
from big_siglip.evaluators.grids import Grid, middles, unit
from big_siglip.evaluators.patches import Sight
from big_siglip.evaluators.result import (
  EXAMPLES,
  MatchExample,
  Result,
  Table,
)
from big_siglip.evaluators.scores import plain
from big_siglip.models.patches import Patches

WITHIN = (0.1, 0.05)  # Of the side of what the model sees.


@dataclasses.dataclass(frozen=True)
class Correspondence:
  """PCK between photos and known crops of them.

  Attributes:
    photos: images with "other", a crop as the tower sees it, "grids" int32
      [2, 2], of the whole and of the crop, and "truth" float32 [L2], where in
      the whole the middle of each patch of the crop lies, in [0, 1] (down,
      right), and outside of it where the whole does not show it.
    grid: of the patches.
    sight: how patches are seen.
    patches: which features.
    baselines: whether pixels and a random tower are measured as well, once.
  """

  photos: Rows
  grid: Grid
  sight: Sight
  patches: Patches
  baselines: bool

  def __call__(self, params: Any) -> Result:
    """Returns means over photos of the share of patches that are found.

    "pck@0.1" and "pck@0.05"; "ceiling_", of the nearest patch there is;
    "position_", of the same place; "raw_" and "random_", by the patches' pixels
    and by a tower of random weights; "skipped".
    """
    embed = self.sight.towers(self.patches)
    examples: list[MatchExample] = []
    found = self._found(embed, params, examples)
    seen = np.isfinite(found[:, 0, 0])
    if not seen.any():
      raise UserError("evaluation: none of its examples can be read")
    metrics = {}
    for k, share in enumerate(WITHIN):
      metrics[f"pck@{share}"] = float(found[seen, 0, k].mean())
    for k, share in enumerate(WITHIN):
      metrics[f"ceiling_pck@{share}"] = float(found[seen, 1, k].mean())
      metrics[f"position_pck@{share}"] = float(found[seen, 2, k].mean())
    if self.baselines:
      metrics |= self._baselines
    metrics["skipped"] = float(self.photos.count - seen.sum())
    return Result(
      metrics,
      {},
      images=int(seen.sum()),
      scores={
        f"pck@{share}": plain(found[seen, 0, k])
        for k, share in enumerate(WITHIN)
      },
      rows=functools.partial(self._rows, found),
      examples=examples,
    )

  @functools.cached_property
  def _baselines(self) -> dict[str, float]:
    embed = self.sight.towers(self.patches)
    metrics = {}
    for name, way, params in (
      ("raw", self.sight.raw, None),
      ("random", embed, self.sight.random()),
    ):
      found = self._found(way, params)
      for k, share in enumerate(WITHIN):
        metrics[f"{name}_pck@{share}"] = float(np.nanmean(found[:, 0, k]))
    return metrics

  def _found(
    self,
    embed: Embed,
    params: Any,
    examples: list[MatchExample] | None = None,
  ) -> np.ndarray:
    """Returns N32 float64 of all photos; NaN where one cannot be read.

    The shares that the features, the nearest patch and the same place find,
    within each of `WITHIN`. The first photos go to `examples`.
    """
    found = np.full((self.photos.count, 3, len(WITHIN)), np.nan)
    for number, shown, grids, features in self._pairs(embed, params):
      whole, other, truth = features
      places, own = (middles(*grid) for grid in grids)
      inside = ((truth >= 0) & (truth <= 1)).all(axis=1)
      if not inside.any():
        continue
      cosines = unit(other[inside]) @ unit(whole).T
      if shown and examples is not None and len(examples) < EXAMPLES:
        best = places[cosines.argmax(axis=1)]
        first, second = self._shown(*shown)
        at = own[inside]
        examples.append(
          MatchExample(number, first, second, at, best, truth[inside])
        )
      distances = np.linalg.norm(places[None] - truth[inside, None], axis=-1)
      errors = (
        distances[np.arange(len(cosines)), cosines.argmax(axis=1)],
        distances.min(axis=1),
        np.linalg.norm(own[inside] - truth[inside], axis=-1),
      )
      for row, error in enumerate(errors):
        found[number, row] = [np.mean(error <= share) for share in WITHIN]
    return found

  def _pairs(self, embed: Embed, params: Any) -> Iterator[tuple]:
    """Yields (number, shown, grids, (whole LC, other LC, truth L2)).

    In every process all. `shown` says where this process has them: a batch and
    a row; else it is None. Each of both images has an L of its own.
    """
    with progress.Progress(self.photos.count, "photos") as show:
      for batch in self.photos.batches():
        names = "index", "mask", "truth", "grids"
        labels = {name: batch[name] for name in names}
        whole, values = embed(params, batch["image"], labels)
        other, _ = embed(params, batch["other"], {})
        whole, other, values = jax.device_get((whole, other, values))
        own = {
          int(batch["index"][row]): (batch, row)
          for row in np.flatnonzero(batch["mask"])
        }
        for row in np.flatnonzero(values["mask"]):
          number = int(values["index"][row])
          grids = values["grids"][row]
          first, second = grids.prod(axis=1)
          truth = values["truth"][row, :second]
          found = whole[row, :first], other[row, :second], truth
          yield number, own.get(number), grids, found
          show.add(1)

  def _shown(self, batch: Batch, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image and its crop, uint8 HW3."""
    first, second = (
      _pixels(jax.tree.map(lambda x: x[row], batch[name]), self.grid.patch)
      for name in ("image", "other")
    )
    return first, second

  def _rows(self, found: np.ndarray) -> Table:
    """Returns a row for each photo."""
    count = self.photos.count
    seen = np.isfinite(found[:, 0, 0])
    return {
      "key": list(map(self.photos.name, range(count))),
      "row": list(range(count)),
      **{
        f"pck@{share}": tables.plain(found[:, 0, k])
        for k, share in enumerate(WITHIN)
      },
      "note": [None if one else tables.UNREADABLE for one in seen.tolist()],
    }


def show_twice(
  example: Example, preprocess: Preprocess, grid: Grid, min_area: float
) -> Batch:
  """Returns "other", a crop of an image, "grids", and "truth".

  Args:
    example: the image; its bytes decide by lot about the crop.
    preprocess: what comes before the tower.
    grid: of the patches.
    min_area: the least share of the area that a crop has.
  """
  value = preprocess.value
  pixels = example.image
  if isinstance(pixels, bytes):
    pixels = decoding.decode(pixels, value.resize)
  height, width = pixels.shape[:2]
  rng = np.random.default_rng(zlib.crc32(pixels.tobytes()))
  box = images.random_box(height, width, rng, min_area)
  box = box or (0.0, 0.0, float(width), float(height))
  mirrored = rng.random() < 0.5
  left, top, right, bottom = box
  own = grid.of(max(1, round(bottom - top)), max(1, round(right - left)))
  places = middles(*own)
  if grid.length is None:
    size = value.image_size
    places *= grid.side * grid.patch / size
  else:
    size = own[0] * grid.patch, own[1] * grid.patch
  other = images.resize(pixels, size, value.resize, box)
  if mirrored:
    other = images.flip(other)
    places[:, 1] = 1 - places[:, 1]
  at = np.array([top, left]) + places * [bottom - top, right - left]
  left, top, right, bottom = grid.box(height, width)
  truth = np.zeros((grid.most, 2), np.float32)
  truth[: len(at)] = (at - [top, left]) / [bottom - top, right - left]
  if grid.length is not None:
    cut = patches.cut(other, grid.patch, grid.length)
    other = {"patches": cut, "grid": np.array(own, np.int32)}
  grids = np.array([grid.of(height, width), own], np.int32)
  return {"other": other, "truth": truth, "grids": grids}


def _pixels(image: Image, patch: int) -> np.ndarray:
  """Returns a copy of what a tower sees of an image, uint8 HW3."""
  if isinstance(image, Mapping):
    rows, columns = image["grid"].tolist()
    return patches.join(image["patches"], (rows, columns), patch).copy()
  return image.copy()
