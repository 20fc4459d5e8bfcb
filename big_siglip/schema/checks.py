"""How the rules of a config are written: a line for each that is broken."""

from typing import Any

from ml_collections import ConfigDict


class Checker:
  """Collects a line for every value that breaks its rule."""

  def __init__(self, config: ConfigDict):
    self.config = config
    self.problems: list[str] = []

  def __getitem__(self, field: str) -> Any:
    value = self.config
    for key in field.split("."):
      value = value[key]
    return value

  def require(self, ok: bool, field: str, rule: str) -> None:
    """Notes that a field breaks a rule, unless `ok`."""
    if not ok:
      self.problems.append(f"config.{field}={self[field]!r}: {rule}")

  def at_least(self, minimum: float, *fields: str) -> None:
    """Notes the fields, None apart, that lie below `minimum`."""
    for field in fields:
      if self[field] is not None:
        self.require(
          self[field] >= minimum, field, f"must be at least {minimum}"
        )

  def choice(self, field: str, choices: tuple[str, ...]) -> None:
    """Notes a field that is none of `choices`."""
    rule = f"must be one of {', '.join(choices)}"
    self.require(self[field] in choices, field, rule)
