"""How a field is described, and what follows from its description."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import math
import types
import typing
from typing import Any

from ml_collections import ConfigDict

_NEEDED = object()  # There has always been such a field.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
  """The numbers between two bounds; NaN is never one of them.

  Attributes:
    least: the smallest of them.
    above: what all are larger than, in place of `least`.
    most: the largest of them; infinity: there is no upper bound.
    below: what all are smaller than, in place of `most`; infinity: all are
      finite.
  """

  least: float = -math.inf
  above: float | None = None
  most: float = math.inf
  below: float | None = None

  def __contains__(self, number: float) -> bool:
    """Returns whether a number lies in the range."""
    low = number >= self.least if self.above is None else number > self.above
    high = number <= self.most if self.below is None else number < self.below
    return low and high

  def rule(self) -> str:
    """Returns what a number must do to lie in the range."""
    low = self.least if self.above is None else self.above
    high = self.most if self.below is None else self.below
    if high < math.inf:
      first = "[" if self.above is None else "("
      last = "]" if self.below is None else ")"
      return f"must lie in {first}{low:g}, {high:g}{last}"
    start = "at least" if self.above is None else "above"
    finite = "" if self.below is None else ", and finite"
    return f"must be {start} {low:g}{finite}"


@dataclasses.dataclass(frozen=True)
class Field:
  """What a field of a config may be.

  Attributes:
    type: of its value, such as `int | None`.
    words: if any, a text is one of these.
    within: where a number must lie; None: anywhere.
    rule: (value) -> what it must be instead, or None if it may be so.
    each: what the members of a tuple may be, one at least; None: anything.
    count: how many members a tuple has; None: any number.
    of_weights: None stands for what the weights of `config.init.path` have.
    resumes: a run may be resumed with another value, since it does not change
      the trained parameters by intent.
    older: what it was in runs that were started before the field was there.
    was: words of older runs, and what they are called now.
  """

  type: Any
  words: tuple[str, ...] = ()
  within: Range | None = None
  rule: Callable[[Any], str | None] | None = None
  each: "Field | None" = None
  count: int | None = None
  of_weights: bool = False
  resumes: bool = False
  older: Any = _NEEDED
  was: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def is_newer(self) -> bool:
    """Whether runs were started before there was such a field."""
    return self.older is not _NEEDED

  def mistake(self, value: Any) -> str | None:
    """Returns the rule that a value breaks, or None."""
    return self.wrong_type(value) or self.wrong_value(value)

  def wrong_type(self, value: Any) -> str | None:
    """Returns what type the value must have, if it has another."""
    if value is None and self.of_weights:
      return None
    allowed = typing.get_args(self.type) or (self.type,)
    if not isinstance(value, allowed) or (
      isinstance(value, bool) and bool not in allowed
    ):
      return f"must be {' or '.join(map(_name, allowed))}"
    return None

  def wrong_value(self, value: Any) -> str | None:
    """Returns the rule that a value of the right type breaks, or None."""
    if value is None:
      return None
    if self.words and value not in self.words:
      return f"must be one of {', '.join(self.words)}"
    if self.within and value not in self.within:
      return self.within.rule()
    if self.rule and (broken := self.rule(value)):
      return broken
    each = self.each
    if each and (
      len(value) != (self.count or max(1, len(value)))
      or any(map(each.mistake, value))
    ):
      whole = "" if float in typing.get_args(each.type) else "whole "
      numbers = f"{whole}number{'' if self.count is None else 's'}"
      rule = f"; each {each.within.rule()}" if each.within else ""
      return f"must be {self.count or 'at least one'} {numbers}{rule}"
    return None


def rgb(kind: Any, within: Range, older: tuple[float, ...]) -> Field:
  """Returns the field of a number for each of red, green and blue."""
  each = Field(kind, within=within)
  return Field(tuple | list, each=each, count=3, of_weights=True, older=older)


@dataclasses.dataclass(frozen=True)
class Sections:
  """A section of sections whose names the user chooses.

  Attributes:
    common: the fields of each.
    kinds: {value of the field `kind`: its own fields}; a section may hold those
      of other kinds too, so that its kind can be overridden. None: there are no
      kinds.
    resumes: as `Field.resumes`.
  """

  common: Mapping[str, Field]
  kinds: Mapping[str, Mapping[str, Field]] | None = None
  resumes: bool = False

  def fields(self, section: Mapping[str, Any]) -> dict[str, Field]:
    """Returns the fields that a section needs, and those it also may have."""
    fields: dict[str, Field] = {}
    own: Mapping[str, Field] = {}
    for kind, theirs in (self.kinds or {}).items():
      fields |= {k: f for k, f in theirs.items() if k in section}
      own = theirs if kind == section.get("kind") else own
    return {**fields, **self.common, **own}


Fields = Mapping[str, "Field | Sections | Fields"]


def misshapen(section: Any, fields: Fields, path: str) -> Iterator[str]:
  """Yields a line for every field that is missing, unknown or of a wrong type.

  Args:
    section: a ConfigDict or a section of one.
    fields: its fields.
    path: what to call the section, such as "config.model".
  """
  for name, field in fields.items():
    where = f"{path}.{name}"
    if name not in section:
      yield f"{where}: missing (configs/base.py has every field)"
    elif isinstance(field, Field):
      if rule := field.wrong_type(section[name]):
        yield f"{where}={section[name]!r}: {rule}"
    elif not isinstance(section[name], Mapping | ConfigDict):
      yield f"{where}={section[name]!r}: must be a section"
    elif isinstance(field, Sections):
      yield from misshapen_named(section[name], field, where)
    else:
      yield from misshapen(section[name], field, where)
  for name in section:
    if name not in fields:
      yield f"{path}.{name}: unknown; known: {', '.join(sorted(fields))}"


def misshapen_named(
  sections: Mapping[str, Any], rule: Sections, path: str
) -> Iterator[str]:
  """Yields the same for each of the sections that the user named."""
  for name, section in sections.items():
    where = f"{path}.{name}"
    if not isinstance(section, Mapping | ConfigDict):
      yield f"{where}={section!r}: must be a section"
    elif rule.kinds is not None and section.get("kind") not in [*rule.kinds]:
      kinds = ", ".join(rule.kinds) or "none, as yet"
      yield f"{where}.kind={section.get('kind')!r}: must be one of {kinds}"
    else:
      yield from misshapen(section, rule.fields(section), where)


def leaves(
  section: Any, fields: Fields | Sections, path: str
) -> Iterator[tuple[str, Field, Any]]:
  """Yields (name, field, value) for every field of a section in shape."""
  if isinstance(fields, Sections):
    for name, own in section.items():
      yield from leaves(own, fields.fields(own), f"{path}.{name}")
    return
  for name, field in fields.items():
    where = f"{path}.{name}"
    if isinstance(field, Field):
      yield where, field, section[name]
    else:
      yield from leaves(section[name], field, where)


def complete(section: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
  """Returns a section as an older run wrote it, in today's fields and words."""
  whole = dict(section)
  for name, field in fields.items():
    value = section.get(name)
    if isinstance(field, Field):
      if name not in section and field.is_newer:
        older = field.older
        whole[name] = list(older) if isinstance(older, tuple) else older
      elif isinstance(value, str):
        whole[name] = field.was.get(value, value)
    elif isinstance(field, Sections):
      whole[name] = _complete_named(section.get(name, {}), field)
    elif isinstance(value, Mapping) or (
      name not in section and _is_newer(field)
    ):
      whole[name] = complete(value or {}, field)
  return whole


def _complete_named(sections: Any, rule: Sections) -> Any:
  if not isinstance(sections, Mapping):
    return sections
  return {
    name: complete(section, rule.fields(section))
    if isinstance(section, Mapping)
    else section
    for name, section in sections.items()
  }


def _is_newer(fields: Fields) -> bool:
  """Returns whether there was no such section when older runs started."""
  return all(
    isinstance(f, Field) and f.is_newer or isinstance(f, Mapping | Sections)
    for f in fields.values()
  )


def _name(kind: Any) -> str:
  return "None" if kind is types.NoneType else kind.__name__
