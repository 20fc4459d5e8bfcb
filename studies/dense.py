"""Dense features: CLIP's way against SigLIP's, same tower and steps.

python -m studies.dense --output=DIR [--quick]

CLIP pools a class token and asks a softmax which text is an image's; SigLIP
pools by attention and asks of each pair by a sigmoid. What their patches know
is measured without and with labels (docs/dense.md).
"""

from collections.abc import Mapping

from studies import command, runs
from studies.records import Records
from studies.report import Curve, difference, Panel, Report, score

# A tower with a class token has no pool that sees a patch alone.
_OF_VALUES = {
  f"evals.{name}.patches": "value" for name in ("shapes", "colours", "objects")
}
WAYS = {
  "softmax and class token": {
    "loss.name": "softmax",
    "model.image.pooling": "cls",
    **_OF_VALUES,
  },
  "sigmoid and attention pool": {},
}
FIGURES = {  # What is shown: metric.
  "recall@1": "evals/test/image_to_text/recall@1",
  "zero-shot shapes": "evals/shapes/best_miou",
  "zero-shot colours": "evals/colours/best_miou",
  "zero-shot objects": "evals/objects/best_miou",
  "probe of shapes": "evals/probe/miou",
  "nearest patches": "evals/patches/miou",
  "correspondence": "evals/crops/pck@0.1",
}
SETTINGS = {"ways": WAYS, "changes": {}, "seeds": (0, 1, 2)}
QUICK = {
  "seeds": (0, 1),
  "changes": {
    "total_steps": 2,
    "batch_size": 8,
    "data.name": "scenes/64",
    "model.image.depth": 1,
    "model.text.depth": 1,
  },
}


def study(records: Records, settings: Mapping) -> Report:
  """Trains each way with each seed, and compares figures of all runs."""
  ways = {
    name: {**settings["changes"], **changes}
    for name, changes in settings["ways"].items()
  }
  found = runs.train(records.folder, "scenes_dense", ways, settings["seeds"])
  first, *others = found
  rows, findings = [], []
  for figure, metric in FIGURES.items():
    gains = {
      name: difference(found[name], found[first], metric) for name in others
    }
    scores = [score(found[name], metric) for name in found]
    rows.append([figure, *scores, *gains.values(), *_beside(found, metric)])
    findings += [
      f"{figure}: {name} {_SAID[gain.sign]} ({gain} points)"
      for name, gain in gains.items()
    ]
  places = range(len(FIGURES))
  curves = [
    Curve(name, places, [score(found[name], m) for m in FIGURES.values()])
    for name in found
  ]
  return Report(
    title="Dense features",
    setting="configs/scenes_dense.py, "
    f"{len(settings['seeds'])} seeds; recall@1, best mIoU and PCK@0.1 in "
    "percent, on 1,000 held-out scenes. Zero-shot: the patches of a class "
    "token's tower are its last block's values, as MaskCLIP takes them. "
    "The ceiling is what patches of this size can do; random is the same tower "
    "untrained, raw the pixels of the patches.",
    header=[
      *("figure", *found),
      *(f"{name} − {first}" for name in others),
      *("random", "raw", "ceiling"),
    ],
    rows=rows,
    findings=findings,
    panels=[
      Panel("What patches know", "", "percent", curves, ticks=tuple(FIGURES))
    ],
  )


_SAID = {1: "is better", -1: "is worse", 0: "makes no difference that shows"}


def _beside(found: Mapping, metric: str) -> list[str]:
  """Returns what stands beside a figure, of the last setting."""
  records = list(found.values())[-1]
  section, name = metric.rsplit("/", 1)
  names = f"random_{name}", f"raw_{name}", "ceiling_miou"
  return [
    str(score(records, f"{section}/{x}"))
    if f"{section}/{x}" in records[0]
    else ""
    for x in names
  ]


def main(arguments=None) -> None:
  """Runs the study."""
  command.main("dense", __doc__, study, SETTINGS, QUICK, arguments)


if __name__ == "__main__":
  main()
