"""Which charts a report has: what was logged, and what was evaluated."""

from collections.abc import Iterable, Sequence
import re

from big_siglip.evaluation.reading import is_about
from big_siglip.report.charts import Chart, Curve
from big_siglip.report.runs import Run

# Title, {label: metric}, whether shares, whether a logarithmic axis may help.
_TRAINING = (
  ("loss", {"": "loss"}, False, True),
  ("learning rate", {"": "learning_rate"}, False, False),
  ("norm of the gradient", {"": "grad_norm"}, False, True),
  (
    "logits",
    {
      "matching pairs": "positive_logit",
      "hardest negative": "hardest_negative_logit",
      "all other pairs": "negative_logit",
    },
    False,
    False,
  ),
  ("scale of the logits", {"": "logit_scale"}, False, False),
  ("bias of the logits", {"": "logit_bias"}, False, False),
  ("examples a second", {"": "examples_per_second"}, False, False),
  ("share of time that waits for data", {"": "data_wait"}, True, False),
  ("model FLOPs utilisation", {"": "mfu"}, True, False),
)
# These have a table of their own.
_COUNTS = ("skipped_examples", "skipped_steps", "retried_reads")
# Shares; names begin so.
_BETTER_HIGH = (
  *("accuracy", "top5", "per_class", "recall"),
  *("exact_match", "text_exact_match", "mean_iou"),
)
_BETTER_LOW = ("loss", "ece", "brier", "wrong", "perplexity")


def training_charts(runs: Sequence[Run]) -> list[Chart]:
  """Returns the charts that every run has."""
  charts = [_chart(runs, *wanted) for wanted in _TRAINING]
  return [chart for chart in charts if chart]


def other_charts(runs: Sequence[Run]) -> list[Chart]:
  """Returns a chart for every other number that was logged in training."""
  known = {name for _, named, *_ in _TRAINING for name in named.values()}
  names = {name for run in runs for name in run.names()}
  rest = sorted(names - known - set(_COUNTS))
  charts = [
    _chart(runs, name.replace("_", " "), {"": name}, False, True)
    for name in rest
    if not name.startswith(("skipped/", "evals/"))
  ]
  return [chart for chart in charts if chart]


def evaluation_charts(
  runs: Sequence[Run],
) -> tuple[list[Chart], list[Chart]]:
  """Returns the charts of shares (accuracy ...), and of all other metrics.

  Recall at several K shares one. What was measured once is no curve: the table
  has it.
  """
  groups: dict[str, dict[str, str]] = {}
  for name in evaluated(runs):
    title, at, k = name.removeprefix("evals/").partition("@")
    if not is_count(name):
      label = f"@{k}" if at else ""
      groups.setdefault(title, {})[label] = name
  first, others = [], []
  for title, named in groups.items():
    share = all(is_share(name) for name in named.values())
    chart = _chart(runs, title, named, share, False)
    if chart and any(len(curve.points) > 1 for curve in chart.curves):
      (first if share else others).append(chart)
  return (first, others) if first else (others, [])


def evaluated(runs: Iterable[Run]) -> list[str]:
  """Returns the names of all metrics of evaluations, evals/NAME/METRIC."""
  names = {name for run in runs for name in run.names()}
  metrics = [n for n in names if n.startswith("evals/")]
  return sorted((n for n in metrics if not is_about(n, names)), key=_natural)


def direction(name: str) -> int:
  """Returns 1 where a higher value is better, -1 a lower one, 0 unknown."""
  metric = name.rpartition("/")[2]
  if any(metric.startswith(word) for word in _BETTER_HIGH):
    return 1
  if any(word in metric.split("_") for word in _BETTER_LOW):
    return -1
  return 0


def is_count(name: str) -> bool:
  """Whether an evaluation says how much it left out."""
  return name.rpartition("/")[2] in ("skipped", "left_out")


def is_share(name: str) -> bool:
  """Whether a metric lies in [0, 1] and is told in percent."""
  return direction(name) > 0


def by_examples(runs: Sequence[Run]) -> bool:
  """Whether steps of different batches make examples the fairer axis."""
  return len({run.config.get("batch_size") for run in runs}) > 1


def _chart(
  runs: Sequence[Run], title: str, named: dict[str, str], share: bool, log: bool
) -> Chart | None:
  """Returns a chart of the metrics `named` by their labels, if any is there."""
  by_example = by_examples(runs)
  curves = []
  for dash, (label, name) in enumerate(named.items()):
    for number, run in enumerate(runs):
      factor = run.config.get("batch_size") or 1 if by_example else 1
      points = [(step * factor, value) for step, value in run.points(name)]
      if points:
        curves.append(Curve(number, label, dash, points))
  if not curves:
    return None
  x_label = "examples" if by_example else "step"
  return Chart(title, curves, x_label, share, log)


def _natural(name: str) -> list[str | int]:
  """Returns a key that sorts numbers in names as numbers: @5 before @10."""
  parts = re.split("([0-9]+)", name)
  return [int(x) if i % 2 else x for i, x in enumerate(parts)]
