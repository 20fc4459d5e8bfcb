"""Adam's b2: 0.95 against 0.999, at every learning rate.

python -m studies.beta2 --output=DIR [--quick]

The paper (arXiv:2303.15343, "Stabilizing large-batch training", figure 5): with
0.999 gradient spikes of large batches make the loss rise; with 0.95 they still
come, but training recovers.
"""

from collections.abc import Mapping

from studies import command
from studies.batch_size import SETTINGS as BATCH_SIZE
from studies.data import SCORES
from studies.records import Records
from studies.report import Curve, difference, Panel, Report, score
from studies.training import Cell

VALUES = (0.95, 0.999)
SETTINGS = {
  "data": "digits",
  "examples": BATCH_SIZE["examples"]["digits"],
  "batch_size": 1024,
  "rates": {"digits": command.RATES["digits"][2:]},  # Where steps are large.
  "seeds": command.SEEDS,
}
QUICK = {
  "examples": 128,
  "batch_size": 16,
  **command.QUICK,
}


def study(records: Records, settings: Mapping) -> Report:
  """Trains with each b2 and learning rate."""
  data = settings["data"]
  rates, seeds = settings["rates"][data], settings["seeds"][data]
  results = {
    (value, rate): records.trainings(
      Cell(
        data, "sigmoid", settings["batch_size"], settings["examples"], b2=value
      ),
      [rate] * len(seeds),
      seeds,
    )
    for value in VALUES
    for rate in rates
  }
  rows, better, worse, calmer = [], [], [], []
  for rate in rates:
    pair = [results[value, rate] for value in VALUES]
    gap, rise = difference(*pair), difference(*pair, "rise")
    better += [f"{rate:g}"] if gap.sign > 0 else []
    worse += [f"{rate:g}"] if gap.sign < 0 else []
    calmer += [f"{rate:g}"] if rise.sign < 0 else []
    rows.append(
      [f"{rate:g}", *map(score, pair), gap]
      + [score(x, "rise") for x in pair]
      + [rise]
    )
  shows = bool(better or calmer)
  panels = [
    Panel(
      *("score" if name == "test" else "rise of the loss", "learning rate"),
      *("accuracy, %" if name == "test" else "% of the first loss",),
      [
        Curve(
          f"b2 = {value}",
          rates,
          [score(results[value, rate], name) for rate in rates],
        )
        for value in VALUES
      ],
      log_x=True,
    )
    for name in ("test", "rise")
  ]
  return Report(
    title="b2 of Adam",
    setting=f"{data}, sigmoid, batch {settings['batch_size']}, "
    f"{settings['examples'] // settings['batch_size']} steps, "
    f"{len(seeds)} seeds for every rate. Scores are {SCORES[data]}, in "
    "percent. The rise is the most that the loss of a training ever stood "
    "above its lowest value before, in percent of the first loss.",
    header=[
      *("rate", *(f"score, b2 = {value}" for value in VALUES), "difference"),
      *(*(f"rise, b2 = {value}" for value in VALUES), "difference"),
    ],
    rows=rows,
    findings=[
      f"That 0.95 is more stable {'shows' if shows else 'does not show'}: it "
      f"scores higher at the rates {', '.join(better) or 'none'}, lower at "
      f"{', '.join(worse) or 'none'}, and its loss rises less at "
      f"{', '.join(calmer) or 'none'}.",
    ],
    panels=panels,
  )


def main(arguments=None) -> None:
  """Runs the study."""
  command.main("beta2", __doc__, study, SETTINGS, QUICK, arguments)


if __name__ == "__main__":
  main()
