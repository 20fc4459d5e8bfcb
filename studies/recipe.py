"""SigLIP 2's recipe, term by term, on scenes: what each of them adds.

python -m studies.recipe --output=DIR [--quick]

The sigmoid loss alone, with a decoder that writes captions, with boxes, and
from 80 % of the steps with self-distillation and with masked prediction
(docs/siglip2.md); captions without the loss of pairs, as CLIP's paper compares;
and the sigmoid loss for as many FLOPs as the whole recipe takes.
"""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict
import numpy as np

from big_siglip import api
from big_siglip.models import flops
from big_siglip.objectives import costs
from configs import base, written
from configs.evals import scenes_dense
from studies import attributes, command, dense, guesses, runs
from studies.data import ROOT
from studies.records import Records
from studies.report import Curve, difference, Panel, Report, score

PLAIN, CAPTIONS, BOXES = "sigmoid", "+ captions", "+ boxes"
DISTILLED, MASKED = "+ distillation", "+ masking"
ALONE, LONGER = "captions alone", "sigmoid, equal FLOPs"
_FIRST = "the first 80 %"  # Of what has boxes; it is not reported.
_PRETRAIN, _DISTIL = "siglip2/scenes_pretrain", "siglip2/scenes_distil"
_NO_TERMS = {
  "terms": {},
  "data.fields": (),
  # Those of the config name the decoder, too.
  "optimizer.rules": runs.PATCHES_OF_12["optimizer.rules"],
}
_NO_BOXES = {"terms.locca.aref": 0.0, "terms.locca.gcap": 0.0}
WRITTEN = {  # What each way's decoder was taught.
  **dict.fromkeys((CAPTIONS, ALONE), ("captions",)),
  **dict.fromkeys((BOXES, DISTILLED, MASKED), ("captions", "boxes")),
}
PATCHES = {  # How texts look for patches, each at its best on training scenes.
  "text": {"patches": "text", "pool_mlp": False, "layer": -1},
  "value": {"patches": "value", "pool_mlp": False, "layer": -2},
}
FIGURES = {  # What is shown: metric.
  "recall@1": "recall/image_to_text/recall@1",
  "captions, right": "captions/exact_match",
  "boxes of phrases": "boxes/accuracy@0.5",
  "phrases of boxes, right": "boxes/text_exact_match",
  **{f"probe of {x}s": f"attributes/{x}" for x in attributes.WORDS},
  **{
    f"zero-shot {x}, {kind}": f"{kind}_painted_{x}/miou"
    for x in ("shapes", "colours")
    for kind in ("text", "value")
  },
  "segmentation probe, shapes": "probe_shapes/miou",
  "segmentation probe, colours": "probe_colours/miou",
  "correspondence": "crops/pck@0.1",
}
DRAWN = "recall@1", "captions, right", "probe of counts", "correspondence"
SETTINGS = {
  "steps": 1_600,
  "changes": runs.PATCHES_OF_12,
  "crops": {
    "terms.teacher.local_count": 4,
    "terms.teacher.local_size": 24,
    "terms.teacher.local_from": "image",
  },
  "seeds": (0, 1, 2),
  "data": "scenes/100000",
  "test": 500,
  "train": 2_000,
  "known": 20_000,  # Training scenes whose captions are guessed.
  "asked": 1_000,
}
QUICK = {
  "steps": 10,
  "seeds": (0, 1),
  "crops": {},
  "changes": {
    "batch_size": 8,
    "data.name": "scenes/64",
    "model.image.depth": 3,
    "model.text.depth": 1,
  },
  "data": "scenes/64",
  "test": 40,
  "train": 64,
  "known": 50,
  "asked": 20,
}


def ways(settings: Mapping) -> dict[str, runs.Way]:
  """Returns {name: way}; the last stages go on from one first stage."""
  steps, changes = settings["steps"], settings["changes"]
  # A schedule of its own for each number of steps, warm-up included.
  whole = {
    **changes,
    "evals": {},  # See `evaluations`.
    "total_steps": steps,
    "optimizer.schedule_steps": steps,
    "optimizer.warmup_steps": steps // 10,
  }
  distil = {**whole, **settings["crops"]}
  made = {
    PLAIN: runs.Way(_PRETRAIN, {**whole, **_NO_TERMS}),
    CAPTIONS: runs.Way(_PRETRAIN, {**whole, **_NO_BOXES}),
    _FIRST: runs.Way(_PRETRAIN, {**whole, "total_steps": steps * 4 // 5}),
    BOXES: runs.Way(_PRETRAIN, whole, _FIRST),
    DISTILLED: runs.Way(
      _DISTIL, {**distil, "terms.teacher.masked": 0.0}, _FIRST
    ),
    MASKED: runs.Way(_DISTIL, distil, _FIRST),
    ALONE: runs.Way(_PRETRAIN, {**whole, **_NO_BOXES, "loss.name": "none"}),
  }
  longer = round(steps * _cost(made))
  fields = {
    "total_steps": longer,
    "optimizer.schedule_steps": longer,
    "optimizer.warmup_steps": longer // 10,
  }
  return {**made, LONGER: runs.Way(_PRETRAIN, {**whole, **_NO_TERMS, **fields})}


def _cost(made: Mapping[str, runs.Way]) -> float:
  """Returns the FLOPs of the whole recipe over those of the sigmoid alone."""

  def step(way: runs.Way) -> float:
    config = api.load_config(ROOT / "configs" / f"{way.config}.py", way.changes)
    own = costs.flops_of_terms(config)
    return flops.flops_per_step(config) + sum(own.values())

  first, last = step(made[_FIRST]), step(made[MASKED])
  return (0.8 * first + 0.2 * last) / step(made[PLAIN])


def evaluations(way: str, settings: Mapping) -> ConfigDict:
  """Returns what a way's runs are asked."""
  own = {"data": settings["data"], "batch_size": 100}
  test = f"test[:{settings['test']}]"
  few = {**own, "split": test, "baselines": way == PLAIN}
  made = ConfigDict()
  for kind, patches in PATCHES.items():
    for name, section in scenes_dense.zero_shot(test, **patches).items():
      if name.startswith("painted") and way != ALONE:
        made[f"{kind}_{name}"] = section
        section.update(few)
  for name, section in scenes_dense.get_config().items():
    if name.startswith(("probe", "crops")):
      made[name] = section
      section.update(few)
      if "train_split" in section:
        section.train_split = f"train[:{settings['train']}]"
  if way != ALONE:
    made.recall = base.retrieval(**own)
  if "captions" in WRITTEN.get(way, ()):
    made.captions = written.caption(**own, text_keys=("phrasings",))
  if "boxes" in WRITTEN.get(way, ()):
    made.boxes = written.grounding(**own)
  return made


def measured(records: Records, settings: Mapping) -> dict[str, list[dict]]:
  """Returns {way: the figures of each seed}; trains what is missing."""
  found = {}
  for seed in settings["seeds"]:
    # A seed's runs are asked before the next seed is trained.
    trained = runs.train(records.folder, ways(settings), [seed])
    for name in trained:
      if name == _FIRST:
        continue
      run = runs.place(records.folder, name, seed)
      asked = runs.evaluate(run, "recipe", evaluations(name, settings))
      probed = attributes.probe(
        run, settings["data"], settings["train"], settings["test"]
      )
      if name == MASKED:
        probed |= guesses.score(run, settings["known"], settings["asked"])
      found.setdefault(name, []).append(asked | probed)
  return found


def study(records: Records, settings: Mapping) -> Report:
  """Trains each way with each seed, and compares figures of all runs."""
  found = measured(records, settings)
  rows, findings = [], []
  for figure, metric in FIGURES.items():
    has = {name: x for name, x in found.items() if metric in x[0]}
    said = [str(score(has[x], metric)) if x in has else "" for x in found]
    rows.append([figure, *said, *dense.beside(found[PLAIN], metric)])
    # What the sigmoid alone has no figure of is compared with captions, boxes.
    first, *others = has
    for name in others:
      gain = difference(has[name], has[first], metric)
      if gain.sign:
        better = "better" if gain.sign > 0 else "worse"
        findings.append(f"{figure}: {name} is {better} than {first} ({gain})")
  findings += _guessed(found[MASKED])
  longer = ways(settings)[LONGER].changes["total_steps"]
  return Report(
    title="SigLIP 2's recipe, term by term",
    setting="configs/siglip2/scenes_distil.py and what it goes on from, "
    f"{settings['steps']:,} steps, "
    f"{len(settings['seeds'])} seeds; self-distillation and masked prediction "
    f"from 80 % of them; the sigmoid for equal FLOPs takes {longer:,} steps. "
    "recall@1, captions (right in either phrasing) and boxes (IoU of 0.5) on "
    f"1,000 held-out scenes, the rest on {settings['test']}, in percent. "
    "Probes of words: balanced accuracy, chance is 50.",
    header=["figure", *found, "random", "raw", "ceiling"],
    rows=rows,
    findings=findings or ["no difference shows"],
    panels=[_panel(found, figure) for figure in DRAWN],
  )


def _panel(found: Mapping[str, Sequence[Mapping]], figure: str) -> Panel:
  """Returns one figure of all ways that have it."""
  metric = FIGURES[figure]
  has = {name: own for name, own in found.items() if metric in own[0]}
  points = [score(own, metric) for own in has.values()]
  curve = Curve(figure, range(len(has)), points)
  return Panel(figure, "", "percent", [curve], ticks=tuple(has))


def _guessed(own: Sequence[Mapping[str, float]]) -> list[str]:
  """Returns what captions are worth that were not written of the image."""
  said = []
  for name, words in (
    ("captions", "the decoder's"),
    ("nearest", "those of the nearest training scene"),
    ("blind", "what it writes of an empty scene"),
  ):
    exact = score(own, f"{name}/exact_match")
    cider = np.mean([one[f"{name}/cider"] for one in own])
    said.append(
      f"captions, {MASKED}: {words}: {exact} right, CIDEr-D {cider:.2f}"
    )
  return said


def main(arguments=None) -> None:
  """Runs the study."""
  command.main("recipe", __doc__, study, SETTINGS, QUICK, arguments)


if __name__ == "__main__":
  main()
