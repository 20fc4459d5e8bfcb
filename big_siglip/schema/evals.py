"""What makes a section of `config.evals` legal."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from big_siglip.schema.fields import (
  COMMON_EVALUATION_FIELDS,
  EVALUATION_FIELDS,
  field_problems,
)

_POSITIVE = ("every", "batch_size", "max_captions", "seeds")
# Fields of the other kinds may stand in a section, so as to override its kind.
_ALL_FIELDS = {
  k: v for own in EVALUATION_FIELDS.values() for k, v in own.items()
}


def evaluation_problems(evals: Mapping[str, Any], path: str) -> list[str]:
  """Returns one line for every mistake that shows without data.

  Args:
    evals: {name: section}.
    path: what to call them, "config.evals".
  """
  problems = []
  for name, spec in evals.items():
    where = f"{path}.{name}"
    if not isinstance(spec, Mapping | ConfigDict):
      problems.append(f"{where}={spec!r}: must be a section")
      continue
    kind = spec.get("kind")
    if kind not in EVALUATION_FIELDS:
      kinds = ", ".join(EVALUATION_FIELDS)
      problems.append(f"{where}.kind={kind!r}: must be one of {kinds}")
      continue
    own = {**COMMON_EVALUATION_FIELDS, **EVALUATION_FIELDS[kind]}
    others = {k: v for k, v in _ALL_FIELDS.items() if k in spec}
    found = list(field_problems(spec, {**others, **own}, where))
    problems += found or _range_problems(spec, where)
  return problems


def _range_problems(spec, where: str) -> Iterator[str]:
  for field in _POSITIVE:
    if spec.get(field) is not None and spec[field] < 1:
      yield f"{where}.{field}={spec[field]!r}: must be at least 1"
  for field, kind, least in (("shots", int, 1), ("penalties", float, 1e-12)):
    values = spec.get(field)
    right = isinstance(values, tuple | list) and all(
      isinstance(v, kind | int) and v >= least for v in values
    )
    if values is not None and not (right and values):
      yield (
        f"{where}.{field}={values!r}: must be at least one number, each at "
        f"least {least}"
      )
  if spec.get("l2") is not None and not spec["l2"] > 0:
    yield f"{where}.l2={spec['l2']!r}: must be above 0"
  if spec.get("prior") is not None and not 0 < spec["prior"] < 1:
    prior = spec["prior"]
    yield f"{where}.prior={prior!r}: must lie between 0 and 1, or be None"
  if spec.get("loss_batch_size") is not None and spec["loss_batch_size"] < 2:
    size = spec["loss_batch_size"]
    yield f"{where}.loss_batch_size={size!r}: must be at least 2"
