"""Which patches find what a text names: the choice of the defaults.

python -m studies.patches --output=DIR [--quick]

It evaluates the towers that `studies.dense` trained with the same --output, and
trains them where there are none. The scenes are of the training split, so that
a choice made here is not made on what is reported elsewhere.
"""

from collections.abc import Mapping
import itertools

from ml_collections import ConfigDict

from configs.evals import scenes_dense
from studies import command, dense, runs
from studies.records import Records
from studies.report import Curve, Panel, Report, score

_LAYERS = (-3, -2, -1)


def _way(kind: str, pool_mlp: bool, centered: bool, layer: int) -> dict:
  return {
    "patches": kind,
    "pool_mlp": pool_mlp,
    "centered": centered,
    "layer": layer,
  }


def _name(kind: str, pool_mlp: bool, centered: bool) -> str:
  return ", ".join([kind] + ["pool MLP"] * pool_mlp + ["centred"] * centered)


_KINDS = list(
  itertools.product(("text", "value"), (True, False), (False, True))
)
WAYS = {
  f"{_name(*kind)}, layer {layer}": _way(*kind, layer)
  for kind in _KINDS
  for layer in _LAYERS
}
_PLAIN = _way("value", False, False, -2)
LARGER = {
  "value, layer -2; 120 pixels at once": {**_PLAIN, "size": 120},
  "value, layer -2; 120 pixels in windows": {
    **_PLAIN,
    "size": 120,
    "stride": 30,
  },
}
SETTINGS = {**dense.SETTINGS, "ways": WAYS | LARGER, "split": "train[:150]"}
QUICK = {
  **dense.QUICK,
  "ways": dict(list(WAYS.items())[:2]),
  "split": "train[:20]",
}


def study(records: Records, settings: Mapping) -> Report:
  """Evaluates each kind of patches on all towers."""
  changes = {**settings["changes"], **dense.WAYS[dense.SIGLIP]}
  towers = {dense.SIGLIP: runs.Way("scenes_dense", changes)}
  runs.train(records.folder, towers, settings["seeds"])
  found: dict[str, list[dict]] = {}
  for seed in settings["seeds"]:
    run = runs.place(records.folder, dense.SIGLIP, seed)
    evals = {
      f"{name}|{section}": spec
      for name, way in settings["ways"].items()
      for section, spec in scenes_dense.zero_shot(
        settings["split"], baselines=False, **way
      ).items()
    }
    for spec in evals.values():
      if data := settings["evals"].get("data"):
        spec.data = data
    numbers = {f"e{i}": spec for i, spec in enumerate(evals.values())}
    metrics = runs.evaluate(run, "patches", ConfigDict(numbers))
    for name in settings["ways"]:
      record = {
        f"{full.partition('|')[2]}/{m}": metrics[f"e{i}/{m}"]
        for i, full in enumerate(evals)
        for m in ("miou", "best_miou")
        if full.partition("|")[0] == name and f"e{i}/{m}" in metrics
      }
      found.setdefault(name, []).append(record)
  columns = [
    *(
      f"{x}/{m}" for x in scenes_dense.TEMPLATES for m in ("miou", "best_miou")
    ),
    *(f"painted_{x}/miou" for x in scenes_dense.TEMPLATES),
  ]
  rows = [[way, *(score(x, c) for c in columns)] for way, x in found.items()]
  panels = [
    Panel(column, "layer", "percent", _curves(found, column))
    for column in ("painted_colours/miou", "colours/best_miou")
  ]
  findings = []
  for column in columns:
    best = max(found, key=lambda way: score(found[way], column).mean)
    findings.append(f"{column}: {best}, {score(found[best], column)}")
  return Report(
    title="Which patches find what a text names",
    setting="mIoU in percent on 150 scenes, without training, of "
    f"{len(settings['seeds'])} towers of configs/scenes_dense.py; `miou` where "
    "background is what no label is as likely as 0.5 for, `best_miou` at the "
    "threshold that suits these masks best, `painted` of the pixels of things "
    "alone.",
    header=["patches", *columns],
    rows=rows,
    findings=findings,
    panels=panels,
  )


def _curves(found: Mapping, column: str) -> list[Curve]:
  """Returns a curve over layers for each kind of patches."""
  curves = []
  for kind in _KINDS:
    name = _name(*kind)
    points = [
      (layer, score(found[way], column))
      for layer in _LAYERS
      if (way := f"{name}, layer {layer}") in found
    ]
    if points:
      curves.append(Curve(name, *zip(*points, strict=True)))
  return curves


def main(arguments=None) -> None:
  """Runs the study."""
  command.main("patches", __doc__, study, SETTINGS, QUICK, arguments)


if __name__ == "__main__":
  main()
