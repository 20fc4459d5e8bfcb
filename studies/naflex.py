"""NaFlex: images in their own shape against squashed ones, as many patches.

python -m studies.naflex --output=DIR [--quick]

The same model, steps and scenes, four fifths of which are 7:1 or 1:7
(docs/naflex.md).
"""

from collections.abc import Mapping

from studies import command, runs
from studies.records import Records
from studies.report import Curve, difference, Panel, Report, SAID, score

SQUASHED, OWN = "squashed", "own shape"
WAYS = {SQUASHED: "scenes_wide", OWN: "siglip2/scenes_naflex"}
_SPLITS = "test", "long", "square"  # Names of evaluations.
FIGURES = {  # What is shown: metric.
  f"{name}, {direction.replace('_', ' ')}": f"evals/{name}/{direction}/recall@1"
  for name in _SPLITS
  for direction in ("image_to_text", "text_to_image")
}
SETTINGS = {"seeds": (0, 1, 2), "changes": {}}
QUICK = {
  "seeds": (0, 1),
  "changes": {
    "total_steps": 2,
    "batch_size": 8,
    "model.image.depth": 1,
    "model.text.depth": 1,
    "data.name": "scenes_wide/64",
    **{f"evals.{name}.data": "scenes_wide/64" for name in _SPLITS},
  },
}


def study(records: Records, settings: Mapping) -> Report:
  """Trains each way with each seed, and compares what they find."""
  ways = {
    name: runs.Way(config, settings["changes"]) for name, config in WAYS.items()
  }
  found = runs.train(records.folder, ways, settings["seeds"])
  rows, findings = [], []
  points = {way: [] for way in WAYS}
  for figure, metric in FIGURES.items():
    gain = difference(found[OWN], found[SQUASHED], metric)
    for way in WAYS:
      points[way].append(score(found[way], metric))
    rows.append([figure, *(str(points[way][-1]) for way in WAYS), str(gain)])
    findings.append(f"{figure}: {OWN} {SAID[gain.sign]} ({gain} points)")
  places = range(len(FIGURES))
  curves = [Curve(way, places, found) for way, found in points.items()]
  return Report(
    title="NaFlex against squashing",
    setting="configs/scenes_wide.py and configs/siglip2/scenes_naflex.py, "
    f"{len(settings['seeds'])} seeds; recall@1 in percent on 1,000 held-out "
    "scenes, on the 800 long ones of them among themselves, and on the 200 "
    "squares.",
    header=["recall@1", *WAYS, f"{OWN} − {SQUASHED}"],
    rows=rows,
    findings=findings,
    panels=[Panel("recall@1", "", "percent", curves, ticks=tuple(FIGURES))],
  )


def main(arguments=None) -> None:
  """Runs the study."""
  command.main("naflex", __doc__, study, SETTINGS, QUICK, arguments)


if __name__ == "__main__":
  main()
