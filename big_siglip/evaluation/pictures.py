"""Pictures of evaluations: confusion, reliability, logits, overlap."""

from collections.abc import Mapping
from typing import Any

from etils import epath
import matplotlib

matplotlib.use("Agg")  # Draws into files; needs no screen.

from matplotlib import pyplot as plt
import numpy as np

from big_siglip.evaluation import patch_pictures
from big_siglip.evaluators import Result

_NAMED_CLASSES = 30  # More names would not be legible beside a matrix.
_CONFUSED = 20
_LABEL = 40  # Letters of a name.


def draw(folder: epath.Path, results: Mapping[str, Result]) -> list[epath.Path]:
  """Writes `folder`/NAME.png for each evaluation that has something to show.

  Returns:
    The files.
  """
  files = []
  for name, result in results.items():
    figure = _drawn(name, result)
    if figure is None:
      continue
    file = folder / f"{name}.png"
    folder.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
      figure.savefig(stream, format="png", dpi=110)
    plt.close(figure)
    files.append(file)
  return files


def chart(name: str, result: Result) -> np.ndarray | None:
  """Returns the same picture of one evaluation, uint8 [H, W, 3], or None."""
  figure = _drawn(name, result)
  return None if figure is None else as_array(figure)


def as_array(figure: Any) -> np.ndarray:
  """Returns a figure as uint8 [H, W, 3], and closes it."""
  figure.canvas.draw()
  pixels = np.array(figure.canvas.buffer_rgba())[..., :3]
  plt.close(figure)
  return pixels


def _drawn(name: str, result: Result):
  """Returns the figure of an evaluation; None where nothing can be shown."""
  details = result.details
  figure = patch_pictures.chart(result)
  if "classes" in details:
    figure = _confusion(details)
  elif "reliability" in details:
    figure = _reliability(details, result.metrics)
  elif "edges" in details:
    figure = _logits(details, result.metrics)
  elif "cider_by_image" in details:
    figure = _captions(details["cider_by_image"], result.metrics)
  elif "accuracy_by_iou" in details:
    figure = _boxes(details["accuracy_by_iou"])
  elif any("recall@" in metric for metric in result.metrics):
    figure = _recalls(result.metrics)
  elif "accuracy_by_seed" in details:
    figure = _shots(details)
  if figure is not None:
    figure.suptitle(name)
  return figure


def _figure(width: float = 7.0, height: float = 5.0):
  return plt.figure(figsize=(width, height), layout="constrained")


def _confusion(details: Mapping[str, Any]):
  """The matrix, or of too many classes the pairs confused most often."""
  if "confusion" not in details:
    return _confused(details)
  matrix = np.array(details["confusion"], float)
  share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
  figure = _figure(7.5, 6.5)
  axes = figure.add_subplot()
  image = axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
  figure.colorbar(image, label="share of the right class's images")
  axes.set_xlabel("predicted")
  axes.set_ylabel("right")
  names = [str(name)[:_LABEL] for name in details["classes"]]
  if len(names) <= _NAMED_CLASSES:
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
  if len(names) <= 12:
    for row, column in zip(*np.nonzero(matrix), strict=True):
      color = "white" if share[row, column] > 0.5 else "black"
      text = f"{int(matrix[row, column])}"
      axes.text(column, row, text, ha="center", va="center", color=color)
  return figure


def _confused(details: Mapping[str, Any]):
  pairs = details["confused"][:_CONFUSED][::-1]
  if not pairs:
    return None
  figure = _figure(8, 1.5 + 0.28 * len(pairs))
  axes = figure.add_subplot()
  labels = [f"{a[:_LABEL]} taken for {b[:_LABEL]}" for a, b, _ in pairs]
  axes.barh(labels, [count for _, _, count in pairs], color="tab:red")
  axes.set_xlabel("images")
  return figure


def _reliability(details: Mapping[str, Any], metrics: Mapping[str, float]):
  """Observed against predicted shares, and how many pairs say so."""
  figure = _figure(7.5, 6)
  top, bottom = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
  top.plot([0, 1], [0, 1], color="gray", linestyle=":")
  for key, prefix, label in (
    ("reliability", "", "as trained"),
    ("refit", "refit/", "scale and bias refit"),
  ):
    curve = details[key]
    points = [
      (x, y)
      for x, y in zip(curve["predicted"], curve["observed"], strict=True)
      if x is not None
    ]
    ece = metrics[f"{prefix}ece"]
    label = f"{label}: ECE {ece:.4f}, scale {metrics[f'{prefix}scale']:.1f}, "
    label += f"bias {metrics[f'{prefix}bias']:.1f}"
    top.plot(*zip(*points, strict=True), marker="o", label=label)
    bins = len(curve["count"])
    centers = (np.arange(bins) + 0.5) / bins
    bottom.step(centers, curve["count"], where="mid")
  top.legend()
  top.set_ylabel("share of right pairs")
  bottom.set_yscale("symlog")
  bottom.set_ylabel("pairs")
  bottom.set_xlabel(
    f"probability that the model gives (prior {metrics['prior']:.4g})"
  )
  return figure


def _logits(details: Mapping[str, Any], metrics: Mapping[str, float]):
  figure = _figure(7.5, 4.5)
  axes = figure.add_subplot()
  edges = details["edges"]
  for side, color in (("negative", "tab:red"), ("positive", "tab:blue")):
    counts = np.array(details[side], float)
    wrong = metrics[f"{side}/wrong"]
    axes.stairs(
      counts / counts.sum(),
      edges,
      fill=True,
      alpha=0.5,
      color=color,
      label=f"{side}: {wrong:.2%} on the wrong side",
    )
  axes.axvline(0, color="gray", linestyle=":")
  axes.set_yscale("log")
  axes.set_xlabel("logit")
  axes.set_ylabel("share of pairs")
  axes.legend()
  return figure


def _captions(histogram: Mapping[str, Any], metrics: Mapping[str, float]):
  figure = _figure(6, 4)
  axes = figure.add_subplot()
  axes.stairs(histogram["share"], histogram["edges"], fill=True, alpha=0.5)
  for name, line in (("cider", "-"), ("shuffled_cider", ":")):
    label = f"{name} {metrics[name]:.3f}"
    axes.axvline(metrics[name], color="gray", linestyle=line, label=label)
  axes.set_xlabel("CIDEr-D of an image's caption")
  axes.set_ylabel("share of images")
  axes.legend()
  return figure


def _boxes(curve: Mapping[str, Any]):
  figure = _figure(6, 4)
  axes = figure.add_subplot()
  axes.plot(curve["iou"], curve["share"], marker=".")
  axes.axvline(0.5, color="gray", linestyle=":")
  axes.set_ylim(0, 1)
  axes.set_xlabel("least IoU of a box that is right")
  axes.set_ylabel("accuracy")
  axes.grid(alpha=0.3)
  return figure


def _recalls(metrics: Mapping[str, float]):
  """Recall by k, or of several languages recall@1 by language."""
  languages = sorted(
    {name.split("/")[0] for name in metrics if name.count("/") == 2}
  )
  figure = _figure(max(6.0, 0.3 * len(languages) + 2), 4)
  axes = figure.add_subplot()
  for side, (way, label) in enumerate(
    (("image_to_text", "image to text"), ("text_to_image", "text to image"))
  ):
    if languages:
      labels = languages
      values = [metrics[f"{name}/{way}/recall@1"] for name in languages]
    else:
      labels = [n.split("/")[1] for n in metrics if n.startswith(f"{way}/")]
      values = [metrics[f"{way}/{name}"] for name in labels]
    places = np.arange(len(labels)) + 0.4 * side - 0.2
    bars = axes.bar(places, values, 0.4, label=label)
    if not languages:
      axes.bar_label(bars, fmt="%.3f")
    axes.set_xticks(range(len(labels)), labels, rotation=90 if languages else 0)
  axes.set_ylim(0, 1.1)
  axes.set_ylabel("recall@1" if languages else "recall")
  axes.legend()
  return figure


def _shots(details: Mapping[str, Any]):
  figure = _figure(6, 4)
  axes = figure.add_subplot()
  by_seed = details["accuracy_by_seed"]
  shots = [int(number) for number in by_seed]
  for values in zip(*by_seed.values(), strict=True):
    axes.plot(shots, values, marker=".", color="tab:blue", alpha=0.5)
  axes.set_xscale("log")
  axes.set_xticks(shots, [str(number) for number in shots])
  axes.set_xlabel("images of each class (a line each choice of them)")
  axes.set_ylabel("accuracy")
  axes.grid(alpha=0.3)
  return figure
