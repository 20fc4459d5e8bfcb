"""Rules for `config.logging`: where else the numbers of a run go."""

import functools

from big_siglip.schema.checks import Checker
from big_siglip.schema.field import Field

_free = functools.partial(Field, resumes=True)

FIELDS = {
  "project": _free(str, older="big_siglip"),
  "entity": _free(str | None, older=None),
  "name": _free(str | None, older=None),
  "tags": _free(tuple | list, older=()),
  "pictures": _free(bool, older=True),
}

# What wandb itself allows: it would say so only once the run has started.
_FORBIDDEN = "/\\#?%:"
_MOST, _MOST_OF_TAG = 128, 64  # Characters.


def check_logging(check: Checker) -> None:
  """Notes names that wandb does not take."""
  project, tags = check["logging.project"], check["logging.tags"]
  check.require(
    0 < len(project) <= _MOST and not set(project) & set(_FORBIDDEN),
    "logging.project",
    f"must have 1 to {_MOST} characters, and none of {' '.join(_FORBIDDEN)}",
  )
  for name in ("entity", "name"):
    value = check[f"logging.{name}"]
    check.require(
      value is None or 0 < len(value.strip()) <= _MOST,
      f"logging.{name}",
      f"must have 1 to {_MOST} characters, or be None",
    )
  check.require(
    all(isinstance(t, str) and 0 < len(t) <= _MOST_OF_TAG for t in tags),
    "logging.tags",
    f"must be texts of 1 to {_MOST_OF_TAG} characters each",
  )
