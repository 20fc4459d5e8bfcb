"""What makes a config legal, and which fields may change on resume."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from big_siglip.schema import sizes
from big_siglip.schema.checks import Checker
from big_siglip.schema.data import (
  check_embeddings,
  check_mixture,
  check_source,
)
from big_siglip.schema.fields import (
  may_change,
  shape_problems,
  unset_fields,
  value_problems,
)
from big_siglip.schema.logs import check_logging
from big_siglip.schema.terms import check_terms

# Evaluations that need no texts, and those that need no pool.
_OF_PATCHES = ("segmentation_probe", "patch_retrieval", "correspondence")
_OF_IMAGES = ("fewshot", "linear_probe", *_OF_PATCHES)
# Of a decoder, which looks at patches: the tasks of which it has learned one.
_WRITTEN = {"caption": ("caption",), "grounding": ("aref", "gcap")}


def find_problems(config: ConfigDict) -> list[str]:
  """Returns one line for every mistake that shows without devices or data.

  Fields that the weights of `config.init.path` are to give may be None; the
  rules about these are for `trained.from_init`, which fills them in.
  """
  if problems := shape_problems(config):
    return problems  # The rules below would stumble over them.
  check = Checker(config)
  check.problems += value_problems(config)
  unset = unset_fields(config)
  if config.init.path is None:
    for field in unset:
      rule = "must be set, or be that of weights: config.init.path names none"
      check.require(False, field, rule)
  _check_optimizer(check)
  if not unset:
    _check_model(check)
  check_source(check)
  check_mixture(check)
  check_terms(check)
  check_logging(check)
  if not has_image_tower(config):
    check_embeddings(check)
  return check.problems


def patch_lengths(config: ConfigDict) -> tuple[int, ...]:
  """Returns which lengths a batch's sequences of patches may have.

  Args:
    config: of a NaFlex model (`config.model.image.max_patches`).
  """
  given = config.get("data", {}).get("patch_lengths")
  return tuple(given or (config.model.image.max_patches,))


def is_halved(config: ConfigDict, length: int) -> bool:
  """Returns whether batches of so long sequences are trained by half."""
  start = config.get("data", {}).get("halve_from")
  return start is not None and length >= start


def has_image_tower(config: ConfigDict) -> bool:
  """Returns whether a run has one, and does not read embeddings made before."""
  return config.data.get("name") != "embeddings"


def device_problems(config: ConfigDict, num_devices: int) -> list[str]:
  """Returns one line for every mistake that shows on this many devices.

  Args:
    config: without the mistakes of `find_problems`.
    num_devices: the devices that share a batch (axes data and fsdp).
  """
  check = Checker(config)
  check.require(
    config.batch_size % num_devices == 0,
    "batch_size",
    f"must be divisible by the {num_devices} devices that share a batch",
  )
  microbatch = config.microbatch
  check.require(
    microbatch is None
    or (config.batch_size % microbatch == 0 and microbatch % num_devices == 0),
    "microbatch",
    f"must divide config.batch_size={config.batch_size} and be divisible by "
    f"the {num_devices} devices that share a batch",
  )
  chunk, rows = config.loss.chunk_size, config.batch_size // num_devices
  if config.data.halve_from is not None:
    check.require(
      rows % 2 == 0,
      "data.halve_from",
      f"needs an even number of examples a device, not {rows} "
      f"(config.batch_size={config.batch_size} on {num_devices})",
    )
    rows //= 2
  check.require(
    chunk is None or rows % chunk == 0,
    "loss.chunk_size",
    f"must divide the {rows} examples of a device",
  )
  return check.problems


def unfit_evals(config: ConfigDict) -> list[str]:
  """Returns one line for each evaluation that needs what the model has not.

  Args:
    config: of a trained model, perhaps of an image tower alone.
  """
  problems = []
  for name, spec in config.evals.items():
    patches = (*_OF_PATCHES, *_WRITTEN)
    if spec.kind in _WRITTEN and (tasks := _untrained(config, spec.kind)):
      problems.append(
        f"config.evals.{name}.kind={spec.kind!r}: needs a decoder that was"
        f" trained for {tasks}: a section of config.terms, of"
        " kind='captioning'"
      )
    elif config.model.image.pooling == "none" and spec.kind not in patches:
      problems.append(
        f"config.evals.{name}: needs embeddings of images, and the model has "
        "no pool (config.model.image.pooling='none')"
      )
    elif spec.kind not in _OF_IMAGES and not sizes.has_text_tower(config.model):
      problems.append(
        f"config.evals.{name}.kind={spec.kind!r}: must be one of "
        f"{', '.join(_OF_IMAGES)}: the model is an image tower alone"
      )
  return problems


def _untrained(config: ConfigDict, kind: str) -> str:
  """Returns the tasks of an evaluation, where no decoder learns one of them."""
  terms = config.get("terms", {})
  decoders = [s for s in terms.values() if s.kind == "captioning"]
  tasks = _WRITTEN[kind]
  if any(spec.get(task, 0) > 0 for spec in decoders for task in tasks):
    return ""
  return " or ".join(tasks)


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Returns "config.FIELD: OLD -> NEW" for what a resumed run may not change.

  Args:
    old: nested dict, as JSON reads it.
    new: the same.
  """
  flat_old, flat_new = dict(flatten(old)), dict(flatten(new))
  changes = []
  for field in sorted(flat_old.keys() | flat_new.keys()):
    if may_change(field):
      continue
    before, now = (
      flat.get(field, "(no field)") for flat in (flat_old, flat_new)
    )
    if before != now:
      changes.append(f"config.{field}: {before!r} -> {now!r}")
  return changes


def _check_optimizer(check: Checker) -> None:
  ring = check["loss.name"].startswith("ring_")
  for field, plain in (("loss.chunk_size", None), ("loss.dtype", "float32")):
    check.require(
      ring or check[field] == plain,
      field,
      f"needs a ring loss; config.loss.name={check['loss.name']} computes all "
      "logits at once, in float32",
    )
  check.require(
    check["loss.name"] != "none" or check.config.terms,
    "loss.name",
    "leaves nothing to learn without config.terms",
  )
  optimizer, total = check.config.optimizer, check.config.total_steps
  past = max(total - optimizer.stretch_from, 0)
  last = min(total, optimizer.stretch_from) + past / optimizer.stretch
  ends, of = optimizer.schedule_steps, "config.optimizer.schedule_steps"
  if ends is None:
    ends, of = total, "config.total_steps"
  else:
    check.require(
      ends >= last,
      "optimizer.schedule_steps",
      f"must be at least {last:.0f}, where config.total_steps={total} lies in "
      "the schedule",
    )
  check.require(
    optimizer.warmup_steps + optimizer.cooldown_steps <= ends,
    "optimizer.warmup_steps",
    f"must, with cooldown_steps={optimizer.cooldown_steps}, be at most "
    f"{of}={ends}",
  )


def _check_model(check: Checker) -> None:
  model = check.config.model
  towers = {}
  for tower, resolve in (
    ("image", sizes.resolve_image),
    ("text", sizes.resolve_text),
  ):
    try:
      towers[tower] = size = resolve(model[tower])
    except ValueError as error:
      check.problems.append(str(error))
      continue
    check.require(
      model[tower].pooling != "none",
      f"model.{tower}.pooling",
      "must pool: the contrastive loss needs one embedding of each "
      f"{tower}; none is for models that give tokens alone",
    )
    if size.width % size.num_heads:
      check.problems.append(
        f"config.model.{tower}.num_heads={size.num_heads}: must divide the "
        f"width, {size.width}"
      )
  if "image" in towers:
    patch, pixels = towers["image"].patch_size, model.image.image_size
    check.require(
      pixels >= patch and (pixels % patch == 0 or model.image.drop_border),
      "model.image.image_size",
      f"must be a multiple of the patch size, {patch} (or set "
      "config.model.image.drop_border=True to leave the last pixels unseen)",
    )
    _check_naflex(check)
  if len(towers) == 2:
    _check_embed_dim(check, towers)


def _check_naflex(check: Checker) -> None:
  """Images that keep their shape have no class token, and nothing cut off."""
  if check["model.image.max_patches"] is None:
    rule = "needs config.model.image.max_patches: the model squashes images"
    for field in ("data.patch_lengths", "data.halve_from"):
      check.require(check[field] is None, field, rule)
    return
  check.require(
    check["model.image.pooling"] != "cls",
    "model.image.pooling",
    "must be map or gap with config.model.image.max_patches: a class token has "
    "no place in a grid",
  )
  for field, plain in (("crop", "none"), ("crop_fraction", 1.0)):
    check.require(
      check[f"data.{field}"] == plain,
      f"data.{field}",
      f"must be {plain!r} with config.model.image.max_patches: images keep "
      "their shape",
    )
  check.require(
    check["model.attention"] != "short",
    "model.attention",
    "must be another with config.model.image.max_patches: it has no masks, "
    "and auto, splash, cudnn, xla and heads_first have",
  )


def _check_embed_dim(check: Checker, towers) -> None:
  model = check.config.model
  embed_dim = model.embed_dim or towers["image"].width
  for tower in ("image", "text"):
    check.require(
      model[tower].head or towers[tower].width == embed_dim,
      f"model.{tower}.head",
      f"must be True, since the tower's width {towers[tower].width} is not "
      f"the embedding's, {embed_dim}",
    )


def flatten(tree: Mapping[str, Any], prefix="") -> Iterator[tuple[str, Any]]:
  """Yields ("model.image.width", 128) and the like of a nested dict."""
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from flatten(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value
