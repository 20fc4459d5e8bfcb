"""The table of the fields of terms of the loss, and what makes them legal.

configs/terms.py says what each is for.
"""

import functools
import math

from big_siglip.schema.checks import Checker
from big_siglip.schema.field import Field, Range, Sections
from big_siglip.schema.sizes import resolve_image

_COUNT, _NOT_NEGATIVE = Range(least=1), Range(least=0)
_POSITIVE = Range(above=0, below=math.inf)
_SHARE = Range(least=0, most=1)
_WEIGHT = Field(float | int, within=_NOT_NEGATIVE)
_free = functools.partial(Field, resumes=True)


def _numbers(within: Range, count: int) -> Field:
  each = Field(float | int, within=within)
  return Field(tuple | list, each=each, count=count)


CAPTION_TASKS = ("caption", "aref", "gcap")
DISTILLATION_HALVES = ("local", "masked")
# Sections by name: the fields of each kind. A new kind is one entry here.
TERMS = Sections(
  {"kind": Field(str), "weight": _WEIGHT},
  {
    "captioning": {
      **dict.fromkeys(CAPTION_TASKS, _WEIGHT),
      "parallel": Field(float | int, within=_SHARE),
      "depth": Field(int | None, within=_COUNT),
      "length": Field(int | None, within=Range(least=3)),
      "tie_embedding": Field(bool),
      "boxes": Field(str, ("text", "tokens")),
      "bins": Field(int, within=Range(least=2)),
      "prefixes": Field(tuple | list),
      "chunk_size": _free(int, within=_COUNT),
      "slice_examples": _free(int | None, within=_COUNT, older=None),
    },
    "distillation": {
      **dict.fromkeys(DISTILLATION_HALVES, _WEIGHT),
      "momentum": Field(float | int, within=Range(least=0, below=1)),
      "global_area": _numbers(Range(above=0, most=1), 2),
      "local_count": Field(int, within=_COUNT),
      "local_size": Field(int, within=_COUNT),
      "local_area": _numbers(Range(above=0, most=1), 2),
      "local_from": Field(str, ("image", "global")),
      "flip": Field(bool),
      "resize": Field(str, ("bilinear", "bicubic")),
      "jitter": Field(float | int, within=_SHARE),
      "jitter_strength": _numbers(_SHARE, 4),
      "grey": Field(float | int, within=_SHARE),
      "global_blur": Field(float | int, within=_SHARE),
      "local_blur": Field(float | int, within=_SHARE),
      "masked_share": Field(float | int, within=Range(above=0, most=1)),
      "hidden": Field(int, within=_COUNT),
      "bottleneck": Field(int, within=_COUNT),
      "prototypes": Field(int, within=Range(least=2)),
      "student_temperature": Field(float | int, within=_POSITIVE),
      "teacher_temperature": _numbers(_POSITIVE, 2),
      "warmup_steps": Field(int, within=_NOT_NEGATIVE),
      "centre_momentum": Field(float | int, within=Range(least=0, below=1)),
      "frozen_steps": Field(int, within=_NOT_NEGATIVE),
      "chunk_size": _free(int, within=_COUNT),
      "slice_examples": _free(int | None, within=_COUNT, older=None),
    },
  },
)
# Of parameters and metrics, beside those of terms.
_TAKEN = (
  *("image", "text", "logit_scale", "logit_bias"),
  *("lora", "contrastive"),
)


def check_terms(check: Checker) -> None:
  """Checks the sections `config.terms`."""
  for name in check.config.terms:
    if name in _TAKEN or "/" in name:
      check.problems.append(
        f"config.terms.{name}: must have another name; taken are "
        + ", ".join(_TAKEN)
      )
  checks = {
    "captioning": _check_captioning,
    "distillation": _check_distillation,
  }
  for kind, check_kind in checks.items():
    names = [n for n, s in check.config.terms.items() if s.kind == kind]
    for name in names[1:]:
      check.problems.append(
        f"config.terms.{name}.kind={kind!r}: must be one alone, and "
        f"config.terms.{names[0]} is another"
      )
    for name in names[:1]:
      check_kind(check, f"terms.{name}")


def _check_captioning(check: Checker, section: str) -> None:
  spec = check[section]
  check.require(
    any(spec[task] for task in CAPTION_TASKS),
    f"{section}.caption",
    "must be above 0, or aref or gcap: there is no task",
  )
  check.require(
    len(spec.prefixes) == len(CAPTION_TASKS)
    and all(isinstance(prefix, str) for prefix in spec.prefixes),
    f"{section}.prefixes",
    f"must be three texts, of {', '.join(CAPTION_TASKS)}",
  )
  _check_has_tower(check, section)


def _check_distillation(check: Checker, section: str) -> None:
  spec, image = check[section], check["model.image"]
  check.require(
    any(spec[half] for half in DISTILLATION_HALVES),
    f"{section}.local",
    "must be above 0, or masked: there is nothing to learn",
  )
  check.require(
    spec.prototypes <= spec.chunk_size
    or spec.prototypes % spec.chunk_size == 0,
    f"{section}.prototypes",
    f"must be a multiple of config.{section}.chunk_size={spec.chunk_size}, or "
    "no more",
  )
  for field in ("global_area", "local_area"):
    check.require(
      list(spec[field]) == sorted(spec[field]),
      f"{section}.{field}",
      "must be the least share of an image's area, then the largest",
    )
  _check_has_tower(check, section)
  if image.size is None or image.image_size is None:
    return  # Of weights that are not opened yet.
  try:
    patch = resolve_image(image).patch_size or 1
  except ValueError:
    return  # Which is told elsewhere.
  check.require(
    spec.local_size >= patch
    and (spec.local_size % patch == 0 or image.drop_border),
    f"{section}.local_size",
    f"must be a multiple of the patch size, {patch}",
  )
  patches = (image.image_size // patch) ** 2
  check.require(
    round(spec.masked_share * patches) > 0,
    f"{section}.masked_share",
    f"must hide at least one of {patches} patches",
  )


def _check_has_tower(check: Checker, section: str) -> None:
  check.require(
    check["data.name"] != "embeddings",
    "data.name",
    f"must not be embeddings: config.{section} looks at patches, and there is "
    "no image tower",
  )


def extra_ids(boxes: str, bins: int) -> int:
  """Returns how many ids there are behind the vocabulary of the texts."""
  return bins + len(CAPTION_TASKS) if boxes == "tokens" else 0
