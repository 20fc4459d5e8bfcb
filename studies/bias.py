"""The sigmoid's first bias: 0, -10, and the log odds of a pair that matches.

python -m studies.bias --output=DIR [--quick]

The paper (arXiv:2303.15343, "Bias term in sigmoid loss", batch 8k): -10 scores
63.0, 0 scores 61.7, since the many negatives then push hard in the first steps.
Of n texts one matches: log(1 / (n - 1)) is the bias that knows just this.
"""

from collections.abc import Mapping

import numpy as np

from studies import command
from studies.batch_size import SETTINGS as BATCH_SIZE
from studies.data import SCORES
from studies.records import Records
from studies.report import Curve, difference, Panel, Report, score
from studies.training import Cell

BIASES = {"0": 0.0, "-10": -10.0, "log(1/(n-1))": None}
SETTINGS = {
  "examples": BATCH_SIZE["examples"],
  "batch_sizes": {"digits": (256,), "scenes": (64,)},
  "rates": command.RATES,
  "seeds": command.SEEDS,
}
QUICK = {
  "examples": {"digits": 128},
  "batch_sizes": {"digits": (16,)},
  **command.QUICK,
}


def study(records: Records, settings: Mapping) -> Report:
  """Trains with each first bias."""
  rows, findings, panels = [], [], []
  for data, examples in settings["examples"].items():
    curves = []
    for size in settings["batch_sizes"][data]:
      results = {
        name: records.measure(
          Cell(data, "sigmoid", size, examples, bias=bias),
          settings["rates"][data],
          settings["seeds"][data],
        )
        for name, bias in BIASES.items()
      }
      for name, result in results.items():
        rows.append(
          [data, size, name, f"{result[0]['first_loss']:.2f}", score(result)]
          + [difference(result, results["0"])]
          + [command.chosen(result, settings)]
        )
      findings += _findings(data, size, results)
      values = {
        name: -np.log(size - 1) if bias is None else bias
        for name, bias in BIASES.items()
      }
      order = sorted(BIASES, key=values.get)
      points = [score(results[name]) for name in order]
      curves.append(
        Curve(f"batch {size}", [values[name] for name in order], points)
      )
    y_label = SCORES[data].split(" ")[0] + ", %"
    panels.append(Panel(data, "first bias", y_label, curves))
  scored = "; ".join(f"{data}: {SCORES[data]}" for data in settings["examples"])
  return Report(
    title="First bias of the sigmoid",
    setting=f"Scores in percent ({scored}); the first scale is 10, as in the "
    "paper. Learning rates are chosen for each bias as for the batch sizes. "
    + command.tried(settings),
    header=[
      *("data", "batch n", "first bias", "first loss", "score"),
      *("minus that of bias 0", "rate"),
    ],
    rows=rows,
    findings=findings,
    panels=panels,
  )


def _findings(data, size, results) -> list[str]:
  ahead = difference(results["-10"], results["0"])
  odds = difference(results["log(1/(n-1))"], results["-10"])
  said = {1: "better than", -1: "worse than", 0: "not told apart from"}
  return [
    f"{data}, batch {size}: that -10 is better than 0 "
    f"{'shows' if ahead.sign > 0 else 'does not show'}: {ahead} points; the "
    f"log odds are {said[odds.sign]} -10: {odds} points."
  ]


def main(arguments=None) -> None:
  """Runs the study."""
  command.main("bias", __doc__, study, SETTINGS, QUICK, arguments)


if __name__ == "__main__":
  main()
