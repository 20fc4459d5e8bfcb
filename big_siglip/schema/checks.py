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
