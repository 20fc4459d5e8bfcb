"""Which patches find what a text names: the choice of the defaults.

python -m studies.patches --output=DIR [--quick]

It evaluates the towers that `studies.dense` trained with the same --output, and
trains them where there are none.
"""

from collections.abc import Mapping
import itertools

from ml_collections import ConfigDict

import big_siglip
from configs import dense as sections
from configs import scenes_dense
from studies import command, dense, runs
from studies.records import Records
from studies.report import Curve, Panel, Report, score

WAYS = {
  f"{kind}{', pool MLP' * mlp}{', centred' * centered}": {
    "patches": kind,
    "pool_mlp": mlp,
    "centered": centered,
  }
  for kind, mlp, centered in itertools.product(
    ("text", "value"), (True, False), (False, True)
  )
}
LARGER = {
  "text, pool MLP; 120 pixels at once": {"size": 120},
  "text, pool MLP; 120 pixels, windows of 60": {"size": 120, "stride": 30},
}
SETTINGS = {**dense.SETTINGS, "data": "scenes/100000", "ways": WAYS | LARGER}
QUICK = {
  **dense.QUICK,
  "data": "scenes/64",
  "ways": {name: WAYS[name] for name in ("text, pool MLP", "value")},
}
_TOWER = "sigmoid and attention pool"


def study(records: Records, settings: Mapping) -> Report:
  """Evaluates each kind of patches on all towers."""
  ways = {_TOWER: {**settings["changes"], **dense.WAYS[_TOWER]}}
  runs.train(records.folder, "scenes_dense", ways, settings["seeds"])
  found = {name: [] for name in settings["ways"]}
  for seed in settings["seeds"]:
    model = big_siglip.load(runs.place(records.folder, _TOWER, seed))
    for name, way in settings["ways"].items():
      results = big_siglip.evaluate(
        model, _sections(settings["data"], way), progress=True
      )
      found[name].append(
        {
          f"{what}/{metric}": value
          for what, result in results.items()
          for metric, value in result.metrics.items()
        }
      )
  names = list(scenes_dense.TEMPLATES)
  columns = [f"{x}/{m}" for x in names for m in ("miou", "best_miou")]
  rows = [[way, *(score(x, c) for c in columns)] for way, x in found.items()]
  curves = [
    Curve(way, range(3), [score(x, f"{name}/best_miou") for name in names])
    for way, x in found.items()
  ]
  findings = []
  for column in columns:
    best = max(found, key=lambda way: score(found[way], column).mean)
    findings.append(f"{column}: {best}, {score(found[best], column)}")
  return Report(
    title="Which patches find what a text names",
    setting="mIoU in percent on 1,000 held-out scenes, without training, of "
    f"{len(settings['seeds'])} towers of configs/scenes_dense.py; `miou` where "
    "background is what no label is as likely as 0.5 for, `best_miou` at the "
    "threshold that suits these masks best.",
    header=["patches", *columns],
    rows=rows,
    findings=findings,
    panels=[Panel("Best mIoU", "", "percent", curves, ticks=names)],
  )


def _sections(data: str, way: Mapping) -> ConfigDict:
  return ConfigDict(
    {
      name: sections.segmentation(
        data=data,
        classes_file=f"configs/classes/scenes_{name}.json",
        templates=templates,
        baselines=False,
        **way,
      )
      for name, templates in scenes_dense.TEMPLATES.items()
    }
  )


def main(arguments=None) -> None:
  """Runs the study."""
  command.main("patches", __doc__, study, SETTINGS, QUICK, arguments)


if __name__ == "__main__":
  main()
