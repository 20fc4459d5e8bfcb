"""The table of the fields of terms of the loss, and what makes them legal.

configs/terms.py says what each is for.
"""

import functools

from big_siglip.schema.checks import Checker
from big_siglip.schema.field import Field, Range, Sections

_COUNT, _NOT_NEGATIVE = Range(least=1), Range(least=0)
_WEIGHT = Field(float | int, within=_NOT_NEGATIVE)
_free = functools.partial(Field, resumes=True)

CAPTION_TASKS = ("caption", "aref", "gcap")
# Sections by name: the fields of each kind. A new kind is one entry here.
TERMS = Sections(
  {"kind": Field(str), "weight": _WEIGHT},
  {
    "captioning": {
      **dict.fromkeys(CAPTION_TASKS, _WEIGHT),
      "parallel": Field(float | int, within=Range(least=0, most=1)),
      "depth": Field(int | None, within=_COUNT),
      "length": Field(int | None, within=Range(least=3)),
      "tie_embedding": Field(bool),
      "boxes": Field(str, ("text", "tokens")),
      "bins": Field(int, within=Range(least=2)),
      "prefixes": Field(tuple | list),
      "chunk_size": _free(int, within=_COUNT),
    },
  },
)
# Of parameters and metrics, beside those of terms.
_TAKEN = ("image", "text", "logit_scale", "logit_bias", "contrastive")


def check_terms(check: Checker) -> None:
  """Checks the sections `config.terms`."""
  for name in check.config.terms:
    if name in _TAKEN or "/" in name:
      check.problems.append(
        f"config.terms.{name}: must have another name; taken are "
        + ", ".join(_TAKEN)
      )
  decoders = [
    name
    for name, spec in check.config.terms.items()
    if spec.kind == "captioning"
  ]
  for name in decoders[1:]:
    check.problems.append(
      f"config.terms.{name}.kind='captioning': must be one alone, and "
      f"config.terms.{decoders[0]} is another"
    )
  for name in decoders[:1]:
    _check_captioning(check, f"terms.{name}")


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
  check.require(
    check["data.name"] != "embeddings",
    "data.name",
    f"must not be embeddings: config.{section} looks at patches, and there is "
    "no image tower",
  )
