"""What training will see of its data, and where the time goes."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import itertools
import textwrap
import time
from typing import Any
import warnings

from etils import epath
from matplotlib.figure import Figure
import numpy as np

from big_siglip.data import faults, patches
from big_siglip.data.batch import empty
from big_siglip.data.mixture import epochs, locate, opening_faults
from big_siglip.data.pipeline import train_batches
from big_siglip.data.sources import Source
from big_siglip.data.views import (
  ImageView,
  Patches,
  Sample,
  Streams,
  Tokens,
  View,
)
from big_siglip.errors import BadExample
from big_siglip.report import inspected_boxes
from big_siglip.report.inspected_boxes import LookAtBoxes

_COLUMNS = 6


@dataclasses.dataclass(frozen=True)
class Inspection:
  """What `inspect` found.

  Attributes:
    images_per_second: that arrive in the training loop.
    milliseconds: of one thread for one example, by stage.
    epochs: as in the metrics, at the end of the run.
    skipped: how many examples could not be used, by kind.
    faults: the first of them, each once; before them, with the index -1, whole
      shards that could not be read.
    rows: source, number, image [H, W, 3] (or embedding [D]) and text of the
      first examples.
    boxes: of the examples; None where the config takes none.
  """

  images_per_second: float
  milliseconds: Mapping[str, float]
  epochs: Mapping[str, float]
  skipped: Mapping[str, int]
  faults: tuple[faults.Fault, ...]
  rows: tuple[tuple[str, int, np.ndarray, str], ...]
  boxes: LookAtBoxes | None = None


def inspect(
  source: Source, views: Sequence[View], config: Any, count: int
) -> Inspection:
  """Loads what training would load first, and measures it.

  Args:
    source: the examples.
    views: see `build.views`.
    config: the whole config.
    count: examples to look at, at least.
  """
  data = config.data
  batches = train_batches(
    source,
    views,
    batch_size=config.batch_size,
    seed=config.seed,
    num_workers=data.num_workers,
    num_threads=data.num_threads,
    decoder=data.decoder,
    stall_seconds=data.stall_seconds,
  )
  with contextlib.closing(batches):
    first = next(batches)  # Starts threads and workers; not measured.
    start = time.perf_counter()
    wanted = max(1, -(-count // config.batch_size))
    rest = list(itertools.islice(batches, wanted))
    elapsed = time.perf_counter() - start
  counts = sum(batch["faults"].sum(0) for batch in [first, *rest])
  found = [fault for _, fault in opening_faults(source)]
  found += [f for b in [first, *rest] for f in faults.from_rows(b["skipped"])]
  return Inspection(
    images_per_second=len(rest) * config.batch_size / elapsed,
    milliseconds=_stages(
      source, views, first["index"][:count], fast=data.decoder == "fast"
    ),
    epochs=epochs(source, config.total_steps * config.batch_size),
    skipped={
      kind: int(n) for kind, n in zip(faults.COUNTERS, counts, strict=True) if n
    },
    faults=tuple(dict.fromkeys(found)),
    rows=tuple(_rows(source, views, first)),
    boxes=inspected_boxes.look(source, views, config, first["index"], count),
  )


def _rows(source: Source, views: Sequence[View], batch) -> Iterator[tuple]:
  (tokens,) = (view for view in views if isinstance(view, Tokens))
  for seen, ids, index in zip(
    _images(views, batch), batch[tokens.name], batch["index"], strict=True
  ):
    name, number = locate(source, int(index))
    yield name, number, seen, tokens.tokenizer.decode(ids)


def _images(views: Sequence[View], batch) -> Iterator[np.ndarray]:
  """Yields images as they are seen, or embeddings of them."""
  for view in views:
    if isinstance(view, Patches):
      for seen, grid in zip(batch["patches"], batch["grid"], strict=True):
        yield patches.join(seen, grid.tolist(), view.patch)
      return
  yield from batch["image" if "image" in batch else "image_embedding"]


def _stages(
  source: Source, views: Sequence[View], indices: np.ndarray, *, fast: bool
) -> dict[str, float]:
  """Returns milliseconds an example, one after the other, in this thread."""
  spent = dict.fromkeys(("read", "decode", *(view.name for view in views)), 0.0)
  outs = [empty(view.fields(0), 1) for view in views]
  used = 0

  @contextlib.contextmanager
  def timed(stage: str):
    start = time.perf_counter()
    yield
    spent[stage] += time.perf_counter() - start

  for index in indices:
    try:
      with timed("read"):
        example = source[int(index)]
      with timed("decode"):
        sample = Sample.of(example, fast)
      image = sample.image
      for view, out in zip(views, outs, strict=True):
        rngs = Streams([(0, 0, int(index))], view.name)
        if isinstance(view, ImageView):
          with timed("decode"):
            image.decoded(view.scale(*image.shape(), rngs[0]) if fast else None)
        with timed(view.name):
          view([sample], rngs, out)
    except BadExample:
      continue
    used += 1
  return {k: 1e3 * seconds / max(used, 1) for k, seconds in spent.items()}


def draw(found: Inspection, path: epath.PathLike, count: int = 24) -> None:
  """Writes a PNG: images after augmentation, with their decoded tokens.

  Embeddings in their place are curves, a number after the other.
  """
  rows = found.rows[:count]
  lines = -(-len(rows) // _COLUMNS)
  figure = Figure(figsize=(2.2 * _COLUMNS, 2.9 * lines), layout="constrained")
  axes = figure.subplots(lines, _COLUMNS, squeeze=False).ravel()
  for ax in axes:
    ax.set_axis_off()
  seen = found.boxes.seen if found.boxes else [None] * len(found.rows)
  parts = zip(axes, rows, seen, strict=False)
  for ax, (name, number, image, text), boxes in parts:
    if image.ndim == 3:
      ax.imshow(image)
      inspected_boxes.draw(ax, image, boxes)
    else:
      ax.plot(image, color="gray", linewidth=0.5)
      ax.set_box_aspect(1)
    ax.set_title(f"{name} {number}".strip(), fontsize=8)
    # Matplotlib would read a formula between two dollar signs.
    wrapped = textwrap.fill(text, 34, max_lines=4).replace("$", r"\$")
    ax.text(
      *(0.5, -0.03, wrapped),
      transform=ax.transAxes,
      ha="center",
      va="top",
      fontsize=7,
    )
  with epath.Path(path).open("wb") as file, warnings.catch_warnings():
    # Of each character that the font lacks: a box shows it.
    warnings.filterwarnings("ignore", "Glyph")
    figure.savefig(file, format="png", dpi=120)
