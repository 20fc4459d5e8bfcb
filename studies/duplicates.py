"""False negatives: what equal captions in a batch cost, and two cures.

python -m studies.duplicates --output=DIR [--quick]

The digits have 60 captions, so that every batch holds many twice: pairs that
the losses call negative although they are true. `config.loss.duplicates` leaves
them out ("ignore") or makes them positive. The paper does not treat them.
"""

from collections.abc import Mapping

import numpy as np

from studies import command
from studies.batch_size import LOSSES
from studies.batch_size import SETTINGS as BATCH_SIZE
from studies.data import SCORES
from studies.records import Records
from studies.report import Curve, difference, Panel, Report, score
from studies.training import Cell

WAYS = ("negative", "ignore", "positive")
SETTINGS = {
  "data": "digits",
  "examples": BATCH_SIZE["examples"]["digits"],
  "batch_sizes": (64, 256),
  "rates": command.RATES,
  "seeds": command.SEEDS,
}
QUICK = {
  "examples": 128,
  "batch_sizes": (16,),
  **command.QUICK,
}


def study(records: Records, settings: Mapping) -> Report:
  """Trains with each loss, batch size and kind of duplicates."""
  data, sizes = settings["data"], settings["batch_sizes"]
  rows, findings, panels = [], [], []
  for loss in LOSSES:
    curves = {way: [] for way in WAYS}
    for size in sizes:
      results = {
        way: records.measure(
          Cell(data, loss, size, settings["examples"], duplicates=way),
          settings["rates"][data],
          settings["seeds"][data],
        )
        for way in WAYS
      }
      share = np.mean([x["duplicate_share"] for x in results["ignore"]])
      gains = {}
      for way, result in results.items():
        curves[way].append(score(result))
        gains[way] = difference(result, results["negative"])
        rows.append(
          [loss, size, f"{share:.2%}", way, score(result)]
          + [gains[way] if way != "negative" else ""]
          + [command.chosen(result, settings)]
        )
      findings.append(_finding(loss, size, gains))
    curves = [Curve(way, sizes, points) for way, points in curves.items()]
    panels.append(Panel(loss, "batch size", "accuracy, %", curves, log_x=True))
  return Report(
    title="False negatives",
    setting=f"{data}; scores are {SCORES[data]}, in percent; duplicates are "
    "pairs of an image and another one's caption that equals its own. Learning "
    "rates are chosen for each row as for the batch sizes; "
    f"{len(settings['seeds'][data])} seeds.",
    header=[
      *("loss", "batch", "duplicates", "are", "score", "gain"),
      "rate",
    ],
    rows=rows,
    findings=findings,
    panels=panels,
  )


def _finding(loss, size, gains) -> str:
  said = {1: "helps", -1: "harms", 0: "makes no difference that shows"}
  return f"{loss}, batch {size}: " + "; ".join(
    f"{way} {said[gains[way].sign]} ({gains[way]} points)"
    for way in WAYS
    if way != "negative"
  )


def main(arguments=None) -> None:
  """Runs the study."""
  command.main("duplicates", __doc__, study, SETTINGS, QUICK, arguments)


if __name__ == "__main__":
  main()
