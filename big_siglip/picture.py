"""One picture of a run: its curves, and what it says of held-out images."""

from collections.abc import Sequence
from typing import NamedTuple

from etils import epath
import matplotlib

matplotlib.use("Agg")  # Draws into files; needs no screen.

from matplotlib import pyplot as plt
from ml_collections import ConfigDict
import numpy as np

from big_siglip import build, sharding
from big_siglip.data import images
from big_siglip.data.sources import open_source
from big_siglip.metrics import read_metrics
from big_siglip.trained import saved

_COLUMNS, _ROWS = 8, 3  # Of the grid of predictions.
_SHOWN = ("loss", "learning_rate", "logit_scale", "logit_bias")
# What metrics are called that are shares of right answers.
_SCORES = ("accuracy", "top5", "recall@")


class Guess(NamedTuple):
  """A held-out image and what the model says of it."""

  image: np.ndarray  # [H, W, 3] uint8
  caption: str
  right: bool


def draw_run(
  run: epath.Path, checkpoint: epath.Path, config: ConfigDict
) -> epath.Path:
  """Writes `run`/summary.png and returns its path."""
  guesses = _guesses(checkpoint, config)
  rows = _ROWS if guesses else 0
  figure = plt.figure(figsize=(14, 4 + 1.7 * rows), layout="constrained")
  top, *bottom = figure.subfigures(
    1 + bool(rows),
    1,
    height_ratios=[4, 1.7 * rows][: 1 + bool(rows)],
    squeeze=False,
  )[:, 0]
  _draw_curves(top, read_metrics(run))
  if bottom:
    _draw_guesses(bottom[0], guesses)
  file = run / "summary.png"
  with file.open("wb") as stream:
    figure.savefig(stream, format="png", dpi=110)
  plt.close(figure)
  return file


def last_metrics(run: epath.Path) -> dict[str, float]:
  """Returns the last value of every metric worth a line."""
  last = {}
  for line in read_metrics(run):
    last |= {name: value for name, value in line.items() if value is not None}
  return {
    name: value
    for name, value in last.items()
    if name in ("step", *_SHOWN) or name.startswith(("evals/", "skipped"))
  }


def _draw_curves(figure, lines: Sequence[dict[str, float]]) -> None:
  left, right = figure.subplots(1, 2)
  _plot(left, lines, ["loss"])
  left.set_ylabel("loss")
  names = sorted({name for line in lines for name in line})
  scores = [
    name
    for name in names
    if name.startswith("evals/") and name.rpartition("/")[2].startswith(_SCORES)
  ]
  _plot(right, lines, scores)
  right.set_ylabel("share right")
  right.set_ylim(0, 1)
  if scores:
    right.legend()


def _plot(axes, lines, names: Sequence[str]) -> None:
  for name in names:
    points = [(m["step"], m[name]) for m in lines if m.get(name) is not None]
    if points:
      label = name.removeprefix("evals/")
      axes.plot(*zip(*points, strict=True), marker=".", label=label)
  axes.set_xlabel("step")
  axes.grid(alpha=0.3)


def _guesses(checkpoint: epath.Path, config: ConfigDict) -> list[Guess]:
  """Returns predictions, the wrong ones first; none without classification."""
  names = [
    name for name, spec in config.evals.items() if spec.kind == "classification"
  ]
  if not names:
    return []
  name, spec = names[0], config.evals[names[0]]
  mesh = sharding.make_mesh()
  evaluator = build.evaluators(config, mesh)[name]
  predictions = evaluator.predict(saved.load_params(checkpoint, config, mesh))
  source = open_source(spec.data, spec.split, spec.path)
  right = predictions.right
  known = np.flatnonzero((predictions.answers >= 0).any(axis=1))
  # Wrong ones teach more; a stable sort keeps the data set's order.
  order = np.argsort(right[known], kind="stable")[: _COLUMNS * _ROWS]
  return [
    Guess(
      images.decode(source[int(predictions.index[i])].image),
      evaluator.template.replace(
        "{}", evaluator.names[predictions.predicted[i]]
      ),
      bool(right[i]),
    )
    for i in known[order]
  ]


def _draw_guesses(figure, guesses: Sequence[Guess]) -> None:
  figure.suptitle("held-out images and the caption chosen (wrong ones in red)")
  for axes, guess in zip(
    figure.subplots(_ROWS, _COLUMNS).flat, guesses, strict=False
  ):
    axes.imshow(guess.image, interpolation="bicubic")
    axes.set_title(
      guess.caption, color="black" if guess.right else "red", fontsize=7
    )
  for axes in figure.axes:
    axes.set_axis_off()
