"""Noisy captions: a share of the training images gets another one's caption.

python -m studies.noise --output=DIR [--quick]

The paper (arXiv:2303.15343, "Label noise robustness"): the sigmoid loses less
than the softmax to captions that do not belong to their images.
"""

from collections.abc import Mapping

from studies import command
from studies.batch_size import LOSSES
from studies.batch_size import SETTINGS as BATCH_SIZE
from studies.data import SCORES
from studies.records import Records
from studies.report import Curve, difference, interval, Panel, Report, score
from studies.training import Cell

SETTINGS = {
  "examples": BATCH_SIZE["examples"],
  "shares": {
    "digits": (0.0, 0.1, 0.25, 0.5),
    "scenes": (0.0, 0.1, 0.25, 0.5),
  },
  "batch_size": {"digits": 256, "scenes": 64},
  "rates": command.RATES,
  "seeds": command.SEEDS,
}
QUICK = {
  "examples": {"digits": 128},
  "shares": {"digits": (0.0, 0.5)},
  "batch_size": {"digits": 16},
  **command.QUICK,
}


def study(records: Records, settings: Mapping) -> Report:
  """Trains with each loss and share."""
  rows, findings, panels = [], [], []
  for data, examples in settings["examples"].items():
    shares, size = settings["shares"][data], settings["batch_size"][data]
    results = {
      (loss, share): records.measure(
        Cell(data, loss, size, examples, shuffled=share),
        settings["rates"][data],
        settings["seeds"][data],
      )
      for share in shares
      for loss in LOSSES
    }
    lost = {share: _loses_less(results, share) for share in shares}
    for share in shares:
      pair = [results[loss, share] for loss in LOSSES]
      rows.append(
        [data, size, f"{share:.0%}", *map(score, pair), difference(*pair)]
        + [lost[share] if share else ""]
        + [command.chosen(x, settings) for x in pair]
      )
    noisy = [share for share in shares if share]
    wins = [f"{share:.0%}" for share in noisy if lost[share].sign > 0]
    fails = [f"{share:.0%}" for share in noisy if lost[share].sign < 0]
    findings.append(
      f"{data}: that the sigmoid loses less to noise "
      f"{'shows' if wins and not fails else 'does not show'}: it loses less at "
      f"{', '.join(wins) or 'none'}, more at {', '.join(fails) or 'none'} of "
      f"the shares; at {noisy[-1]:.0%} by {lost[noisy[-1]]} points."
    )
    curves = [
      Curve(
        loss,
        [100 * share for share in shares],
        [score(results[loss, share]) for share in shares],
      )
      for loss in LOSSES
    ]
    y_label = SCORES[data].split(" ")[0] + ", %"
    panels.append(Panel(data, "captions exchanged, %", y_label, curves))
  scored = "; ".join(f"{data}: {SCORES[data]}" for data in settings["examples"])
  return Report(
    title="Noisy captions",
    setting=f"Scores in percent ({scored}). "
    "The captions of a share of the training images are exchanged among them; "
    "on digits every tenth of those is right by chance. Learning rates are "
    "chosen for each loss and share as for the batch sizes, on a validation "
    f"split without noise. {command.tried(settings)}",
    header=[
      *("data", "batch", "exchanged", *LOSSES, "sigmoid − softmax"),
      "sigmoid loses less by",
      *(f"rate, {loss}" for loss in LOSSES),
    ],
    rows=rows,
    findings=findings,
    panels=panels,
  )


def _loses_less(results, share):
  """Returns by how much less the sigmoid falls from no noise to `share`."""
  falls = {
    loss: [
      clean["test"] - noisy["test"]
      for clean, noisy in zip(
        results[loss, 0.0], results[loss, share], strict=True
      )
    ]
    for loss in LOSSES
  }
  pairs = zip(falls["softmax"], falls["sigmoid"], strict=True)
  return interval([softmax - sigmoid for softmax, sigmoid in pairs])


def main(arguments=None) -> None:
  """Runs the study."""
  command.main("noise", __doc__, study, SETTINGS, QUICK, arguments)


if __name__ == "__main__":
  main()
