"""Conditions on the columns of a folder of embeddings: "width > 100".

    width > 100 and height >= 100
    label = 'dog' or label in ('cat', 'fox')
    key like 'holiday/%' and not (width between 100 and 200)
    caption is not null

As in SQL, but that a text may stand in either quotes, since a column is on the
left and a value on the right; a column whose name is no word stands in quotes,
too. What is empty (null) fulfils no condition but "is null".
"""

from collections.abc import Callable
import dataclasses
import functools
import math
import operator
import re

import pyarrow as pa
import pyarrow.compute as pc

from big_siglip.embeddings import milvus_names
from big_siglip.errors import UserError

_TOKEN = re.compile(
  r"""\s*(?:
    (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?!\w)
    |(?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`)
    |(?P<word>[^\W\d]\w*)
    |(?P<sign><=|>=|!=|<>|==|=|<|>|\(|\)|,))""",
  re.VERBOSE,
)
_COMPARE: dict[str, tuple[Callable, str]] = {
  "=": (operator.eq, "="),
  "==": (operator.eq, "="),
  "!=": (operator.ne, "!="),
  "<>": (operator.ne, "!="),
  "<": (operator.lt, "<"),
  "<=": (operator.le, "<="),
  ">": (operator.gt, ">"),
  ">=": (operator.ge, ">="),
}

_MOST = 2**63 - 1  # Of a whole number.

Value = int | float | str | bool


@dataclasses.dataclass(frozen=True)
class Filter:
  """A condition, as several readers of rows take it.

  Attributes:
    arrow: as pyarrow takes it.
    sql: as LanceDB takes it: names in backticks, texts in single quotes.
    milvus: as Milvus takes it: plain names, texts in double quotes, true where
      the condition is.
    not_milvus: true where the condition is false; neither is where it depends
      on what is empty.
  """

  arrow: pc.Expression
  sql: str
  milvus: str
  not_milvus: str


def parse(where: str, schema: pa.Schema) -> Filter:
  """Returns what a condition means for rows of a schema.

  Raises:
    UserError: it is malformed, names a column that is not there, or compares
      one with a value of another type.
  """
  return _Parser(where, schema).parse()


class _Parser:
  """Reads a condition from left to right; a method for each of its parts."""

  def __init__(self, where: str, schema: pa.Schema):
    self._where, self._schema = where, schema
    self._tokens, self._at = self._split(), 0

  def parse(self) -> Filter:
    """Returns the whole condition."""
    found = self._either()
    if self._at < len(self._tokens):
      raise self._error(f"{self._tokens[self._at][1]!r} is one too many")
    return found

  def _error(self, reason: str) -> UserError:
    return UserError(f"--where={self._where}: {reason}")

  def _split(self) -> list[tuple[str, str]]:
    """Returns (kind, text) of each token."""
    tokens, at, text = [], 0, self._where.rstrip()
    while at < len(text):
      match = _TOKEN.match(text, at)
      if match is None:
        raise self._error(f"{text[at:].strip()[:20]!r} is not understood")
      tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
      at = match.end()
    return tokens

  def _takes(self, *words: str) -> bool:
    """Whether these words or signs come next, which are passed then."""
    coming = self._tokens[self._at : self._at + len(words)]
    if [t.lower() for kind, t in coming if kind != "quoted"] != list(words):
      return False
    self._at += len(words)
    return True

  def _next(self, what: str) -> tuple[str, str]:
    if self._at == len(self._tokens):
      raise self._error(f"ends where {what} must come")
    self._at += 1
    return self._tokens[self._at - 1]

  def _needs(self, sign: str) -> None:
    if not self._takes(sign):
      found = self._next(repr(sign))[1]
      raise self._error(f"{found!r} stands where {sign!r} must")

  def _either(self) -> Filter:
    parts = [self._all()]
    while self._takes("or"):
      parts.append(self._all())
    return _join(parts, operator.or_, "or")

  def _all(self) -> Filter:
    parts = [self._one()]
    while self._takes("and"):
      parts.append(self._one())
    return _join(parts, operator.and_, "and")

  def _one(self) -> Filter:
    if self._takes("not"):
      return _not(self._one())
    if self._takes("("):
      found = self._either()
      self._needs(")")
      return found
    return self._condition()

  def _condition(self) -> Filter:
    kind, text = self._next("a column")
    if kind not in ("word", "quoted"):
      raise self._error(f"{text!r} stands where a column must")
    name = _unquoted(text) if kind == "quoted" else text
    if name not in self._schema.names or name == "embedding":
      there = [n for n in self._schema.names if n != "embedding"]
      raise self._error(
        f"there is no column {name!r}; there are: {', '.join(there)}"
      )
    if self._takes("is"):
      negative = self._takes("not")
      self._needs("null")
      found = Filter(
        pc.field(name).is_null(),
        f"`{name}` is null",
        f"{milvus_names.has_value(name)} == false",
        f"{milvus_names.has_value(name)} == true",
      )
      return _not(found) if negative else found
    if self._takes("not"):
      return _not(self._test(name))
    return self._test(name)

  def _test(self, name: str) -> Filter:
    """Returns what is asked of a column, after its name."""
    if self._takes("like"):
      return self._like(name)
    if self._takes("between"):
      low = self._compared(name, ">=")
      self._needs("and")
      return _join([low, self._compared(name, "<=")], operator.and_, "and")
    if self._takes("in"):
      self._needs("(")
      parts = [self._compared(name, "=")]
      while not self._takes(")"):
        self._needs(",")
        parts.append(self._compared(name, "="))
      return _join(parts, operator.or_, "or")
    _, sign = self._next(f"a comparison of {name!r}")
    if sign not in _COMPARE:
      raise self._error(
        f"{sign!r} stands where one of {' '.join(_COMPARE)} in like between is "
        "must"
      )
    return self._compared(name, sign)

  def _like(self, name: str) -> Filter:
    pattern = self._value(name)
    if not isinstance(pattern, str):
      raise self._error(f"{name!r} is no text, and like compares texts")
    return Filter(
      pc.match_like(pc.field(name), pattern),
      f"`{name}` like {_sql(pattern)}",
      *milvus_names.compared(name, "like", pattern),
    )

  def _compared(self, name: str, sign: str) -> Filter:
    value, column = self._value(name), self._schema.field(name).type
    sign, called = _COMPARE[sign][1], f"`{name}`"
    if pa.types.is_integer(column):
      sign, value = _whole(sign, value)
      if column.bit_width < 64 and abs(value) >= 2 ** (column.bit_width - 1):
        called = f"cast({called} as bigint)"
    return Filter(
      _COMPARE[sign][0](pc.field(name), pc.scalar(value)),
      f"{called} {sign} {_sql(value)}",
      *milvus_names.compared(name, "==" if sign == "=" else sign, value),
    )

  def _value(self, name: str) -> Value:
    """Returns the value that a column is compared with, of its type."""
    kind, text = self._next(f"a value for {name!r}")
    value: Value
    if kind == "number":
      value = int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    elif kind == "quoted":
      value = _unquoted(text)
    elif text.lower() in ("true", "false"):
      value = text.lower() == "true"
    else:
      raise self._error(
        f"{text!r} is no value: a number, true, false, or a text in quotes"
      )
    column = self._schema.field(name).type
    if value in (math.inf, -math.inf) or (
      isinstance(value, int) and abs(value) > _MOST
    ):
      raise self._error(f"{text} is no number of 64 bits")
    if type(value) not in _types(column):
      raise self._error(f"{name!r} is {column}, and {text} is not")
    return value


def _whole(sign: str, value: int | float) -> tuple[str, int]:
  """Returns the comparison with a whole number that whole ones pass alike."""
  floor = math.floor(min(max(value, -_MOST), _MOST))
  if floor == value:
    return sign, floor
  if sign in ("=", "!="):  # None is equal, and all are different.
    return ("<", -_MOST) if sign == "=" else (">=", -_MOST)
  return ("<=" if sign.startswith("<") else ">"), floor


def _types(column: pa.DataType) -> tuple[type, ...]:
  """Returns which values a column may be compared with."""
  if pa.types.is_integer(column) or pa.types.is_floating(column):
    return (int, float)
  if pa.types.is_boolean(column):
    return (bool,)
  return (str,) if pa.types.is_string(column) else ()


def _not(condition: Filter) -> Filter:
  return Filter(
    ~condition.arrow,
    f"not ({condition.sql})",
    condition.not_milvus,
    condition.milvus,
  )


def _join(parts: list[Filter], by: Callable, word: str) -> Filter:
  if len(parts) == 1:
    return parts[0]
  other = "or" if word == "and" else "and"
  return Filter(
    functools.reduce(by, [part.arrow for part in parts]),
    f" {word} ".join(f"({part.sql})" for part in parts),
    f" {word} ".join(f"({part.milvus})" for part in parts),
    f" {other} ".join(f"({part.not_milvus})" for part in parts),
  )


def _unquoted(text: str) -> str:
  quote = text[0]
  return text[1:-1].replace(quote * 2, quote)


def _sql(value: Value) -> str:
  if isinstance(value, str):
    return "'" + value.replace("'", "''") + "'"
  return str(value).lower()
