"""Batch size: sigmoid and softmax on the same number of examples.

python -m studies.batch_size --output=DIR [--quick]

The paper (arXiv:2303.15343, "Scaling batch size"): with small batches the
sigmoid is better than the softmax, the difference closes as batches grow, and
both saturate near 32k, after which larger batches are no better.
"""

from collections.abc import Mapping

from studies import command
from studies.data import SCORES
from studies.records import Records
from studies.report import Curve, difference, Panel, Report, score
from studies.training import Cell

LOSSES = ("sigmoid", "softmax")
SETTINGS = {
  "examples": {"digits": 65_536, "scenes": 32_768},
  "batch_sizes": {
    "digits": (16, 64, 256, 1024, 2048),
    "scenes": (16, 64, 256, 1024, 2048),
  },
  "rates": command.RATES,
  "seeds": command.SEEDS,
}
QUICK = {
  "examples": {"digits": 128},
  "batch_sizes": {"digits": (16,)},
  **command.QUICK,
}


def study(records: Records, settings: Mapping) -> Report:
  """Trains for each data set, loss and batch size."""
  results, rows, findings, panels = {}, [], [], []
  for data, examples in settings["examples"].items():
    sizes = settings["batch_sizes"][data]
    for size in sizes:
      for loss in LOSSES:
        results[data, loss, size] = records.measure(
          Cell(data, loss, size, examples),
          settings["rates"][data],
          settings["seeds"][data],
        )
      pair = [results[data, loss, size] for loss in LOSSES]
      rows.append(
        [data, size, examples // size]
        + [score(x) for x in pair]
        + [difference(*pair)]
        + [command.chosen(x, settings) for x in pair]
      )
    curves = [
      Curve(loss, sizes, [score(results[data, loss, size]) for size in sizes])
      for loss in LOSSES
    ]
    panels.append(
      Panel(
        data, "batch size", SCORES[data].split(" ")[0] + ", %", curves, True
      )
    )
    findings += _findings(data, sizes, results)
  header = ["data", "batch", "steps", *LOSSES, "sigmoid − softmax"]
  scored = "; ".join(f"{data}: {SCORES[data]}" for data in settings["examples"])
  return Report(
    title="Batch size",
    setting=f"Scores in percent ({scored}). The same number of examples for "
    "every batch size, so that large batches take few steps. The learning rate "
    "of each loss and batch size is the best on a validation split, with a "
    f"seed that is not reported. {command.tried(settings)}",
    header=[*header, *(f"rate, {loss}" for loss in LOSSES)],
    rows=rows,
    findings=findings,
    panels=panels,
  )


def _findings(data, sizes, results) -> list[str]:
  gaps = [
    difference(*(results[data, loss, size] for loss in LOSSES))
    for size in sizes
  ]
  smallest, largest = gaps[0], gaps[-1]
  shows = smallest.sign > 0 and largest.mean < smallest.mean
  text = (
    f"{data}: that the sigmoid is ahead with small batches and the difference "
    f"closes {'shows' if shows else 'does not show'}: {smallest} points at "
    f"batch {sizes[0]}, {largest} at {sizes[-1]}"
  )
  wins = [size for size, gap in zip(sizes, gaps, strict=True) if gap.sign > 0]
  losses = [size for size, gap in zip(sizes, gaps, strict=True) if gap.sign < 0]
  text += (
    f"; sigmoid better at {wins or 'none'}, softmax at {losses or 'none'}."
  )
  said, falls = [], []
  for loss in LOSSES:
    scores = {size: score(results[data, loss, size]).mean for size in sizes}
    best = max(scores, key=scores.get)
    fall = difference(results[data, loss, sizes[-1]], results[data, loss, best])
    said.append(f"{best} for {loss} (batch {sizes[-1]}: {fall} points)")
    falls.append(fall.sign < 0)
  shows = (
    "does not show: the largest batches"
    if any(falls)
    else "shows, although they"
  )
  return [
    text,
    f"{data}: the best batch is {', '.join(said)}. That quality grows with the "
    f"batch and then stays {shows} take the fewest steps.",
  ]


def main(arguments=None) -> None:
  """Runs the study."""
  command.main("batch_size", __doc__, study, SETTINGS, QUICK, arguments)


if __name__ == "__main__":
  main()
