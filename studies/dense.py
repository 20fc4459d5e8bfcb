"""Dense features: CLIP's way against SigLIP's, same tower and steps.

python -m studies.dense --output=DIR [--quick]

CLIP pools a class token and asks a softmax which text is an image's; SigLIP
pools by attention and asks of each pair by a sigmoid. What their patches know
is measured without and with labels (docs/dense.md). A further way is a line of
`WAYS`: fields of the config that differ.
"""

from collections.abc import Mapping, Sequence

from configs.evals import scenes_dense
from studies import command, runs
from studies.records import Records
from studies.report import Curve, difference, Panel, Report, SAID, score

CLIP, SIGLIP = "softmax and class token", "sigmoid and attention pool"
WAYS = {
  CLIP: {"loss.name": "softmax", "model.image.pooling": "cls"},
  SIGLIP: {},
}
FIGURES = {  # What is shown: metric.
  "recall@1": "evals/test/image_to_text/recall@1",
  "zero-shot shapes": "shapes/best_miou",
  "zero-shot colours": "colours/best_miou",
  "zero-shot shapes, painted": "painted_shapes/miou",
  "zero-shot colours, painted": "painted_colours/miou",
  "probe of shapes": "probe_shapes/miou",
  "probe of colours": "probe_colours/miou",
  "nearest patches, shapes": "nearest_shapes/miou",
  "nearest patches, colours": "nearest_colours/miou",
  "correspondence": "crops/pck@0.1",
}
SETTINGS = {"changes": {}, "seeds": (0, 1, 2), "evals": {}}
QUICK = {
  "seeds": (0, 1),
  "changes": {
    "total_steps": 2,
    "batch_size": 8,
    "data.name": "scenes/64",
    "evals.test.data": "scenes/64",
    "model.image.depth": 3,
    "model.text.depth": 1,
  },
  "evals": {"data": "scenes/64", "split": "test[:40]"},
}


def study(records: Records, settings: Mapping) -> Report:
  """Trains each way with each seed, and compares figures of all runs."""
  found = measured(records, settings)
  first, *others = found
  rows, findings = [], []
  for figure, metric in FIGURES.items():
    gains = {
      name: difference(found[name], found[first], metric) for name in others
    }
    scores = [score(found[name], metric) for name in found]
    rows.append(
      [figure, *scores, *gains.values(), *beside(found[SIGLIP], metric)]
    )
    findings += [
      f"{figure}: {name} {SAID[gain.sign]} ({gain} points)"
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
    f"{len(settings['seeds'])} seeds; recall@1 on 1,000 held-out scenes, mIoU "
    "and PCK@0.1 on 500 of them, in percent. Zero-shot with a background: at "
    "the threshold that suits these masks best; painted: which thing it is, of "
    "the pixels of things alone. The ceiling is what patches of this size do "
    "that know all their pixels; random is the same tower untrained, raw the "
    "pixels of the patches.",
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


def measured(records: Records, settings: Mapping) -> dict[str, list[dict]]:
  """Returns {way: the figures of each seed}; trains what is missing."""
  ways = {
    name: runs.Way("scenes_dense", {**settings["changes"], **changes})
    for name, changes in WAYS.items()
  }
  found = runs.train(records.folder, ways, settings["seeds"])
  evals = scenes_dense.get_config()
  for section in evals.values():
    section.update(settings["evals"])
  return {
    name: [
      one | runs.evaluate(_place(records, name, one["seed"]), "dense", evals)
      for one in own
    ]
    for name, own in found.items()
  }


def _place(records: Records, name: str, seed: float):
  return runs.place(records.folder, name, int(seed))


def beside(records: Sequence[Mapping], metric: str) -> list[str]:
  """Returns a random tower's figure, raw pixels' and the ceiling, or ""."""
  section, name = metric.rsplit("/", 1)
  names = f"random_{name}", f"raw_{name}", f"ceiling_{name}"
  if name == "best_miou":
    names = names[0], "raw_miou", "ceiling_miou"
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
