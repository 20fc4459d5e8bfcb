"""NaFlex: images in their own shape against squashed ones, as many patches.

python -m studies.naflex --output=DIR [--quick]

A tower that has seen squares goes on with scenes four fifths of which are 7:1
or 1:7, with the same steps both ways (docs/naflex.md).
"""

from collections.abc import Mapping

from big_siglip import metrics
from studies import command, runs
from studies.records import Records
from studies.report import Curve, difference, Panel, Report, SAID, score

_SQUARES = "squares"  # What both go on from.
SQUASHED, OWN = "squashed", "own shape"
WAYS = {SQUASHED: "scenes_wide", OWN: "siglip2/scenes_naflex"}
_SPLITS = "test", "long", "square"  # Names of evaluations.
FIGURES = {  # What is shown: metric.
  f"{name}, {direction.replace('_', ' ')}": f"evals/{name}/{direction}/recall@1"
  for name in _SPLITS
  for direction in ("image_to_text", "text_to_image")
}
SETTINGS = {
  "seeds": (0, 1, 2),
  "before": {**runs.PATCHES_OF_12, "total_steps": 1_600, "evals": {}},
  "changes": {},
}
_QUICK = {
  "total_steps": 2,
  "batch_size": 8,
  "model.image.depth": 1,
  "model.text.depth": 1,
}
QUICK = {
  "seeds": (0, 1),
  "before": {
    **runs.PATCHES_OF_12,
    **_QUICK,
    "evals": {},
    "data.name": "scenes/64",
  },
  "changes": {
    **_QUICK,
    "data.name": "scenes_wide/64",
    **{f"evals.{name}.data": "scenes_wide/64" for name in _SPLITS},
    **{f"evals.{name}.every": 1 for name in _SPLITS},
  },
}


def study(records: Records, settings: Mapping) -> Report:
  """Trains each way with each seed, and compares what they find."""
  weights = {"init.state": "params"}  # A new schedule.
  ways = {
    _SQUARES: runs.Way("siglip2/scenes_pretrain", settings["before"]),
    **{
      name: runs.Way(config, {**settings["changes"], **weights}, _SQUARES)
      for name, config in WAYS.items()
    },
  }
  runs.train(records.folder, ways, settings["seeds"])
  # {way: {step: the metrics of each seed}}
  found = {way: _by_step(records, way, settings["seeds"]) for way in WAYS}
  steps = list(found[OWN])
  rows, findings = [], []
  for figure, metric in FIGURES.items():
    for step in (steps[0], steps[-1]):
      gain = difference(found[OWN][step], found[SQUASHED][step], metric)
      scores = [str(score(found[way][step], metric)) for way in WAYS]
      rows.append([figure, step, *scores, str(gain)])
    findings.append(f"{figure}: {OWN} {SAID[gain.sign]} ({gain} points)")
  panels = []
  for name in _SPLITS:
    metric = f"evals/{name}/image_to_text/recall@1"
    curves = [
      Curve(way, steps, [score(found[way][x], metric) for x in steps])
      for way in WAYS
    ]
    panels.append(Panel(name, "steps", "recall@1, percent", curves))
  return Report(
    title="NaFlex against squashing",
    setting="configs/scenes_wide.py and configs/siglip2/scenes_naflex.py, "
    f"{len(settings['seeds'])} seeds, after "
    f"{settings['before']['total_steps']:,} steps of "
    "configs/siglip2/scenes_pretrain.py, which is of squares; recall@1 in "
    "percent on 1,000 held-out scenes, on the 800 long ones of them among "
    "themselves, and on the 200 squares.",
    header=["recall@1", "after steps", *WAYS, f"{OWN} − {SQUASHED}"],
    rows=rows,
    findings=findings,
    panels=panels,
  )


def _by_step(
  records: Records, way: str, seeds: tuple[int, ...]
) -> dict[int, list[dict[str, float]]]:
  """Returns {step: the metrics of each seed} of where a way was evaluated."""
  found: dict[int, list[dict[str, float]]] = {}
  asked = next(iter(FIGURES.values()))
  for seed in seeds:
    for line in metrics.read_metrics(runs.place(records.folder, way, seed)):
      if asked in line:
        found.setdefault(int(line["step"]), []).append(line)
  return found


def main(arguments=None) -> None:
  """Runs the study."""
  command.main("naflex", __doc__, study, SETTINGS, QUICK, arguments)


if __name__ == "__main__":
  main()
