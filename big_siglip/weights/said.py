"""Values of other projects' JSON files, each checked before it is used.

All raise a `UserError` of one line, with the file, the key, its value and what
is allowed.
"""

from collections.abc import Collection, Mapping
import math
from typing import Any, NoReturn

from big_siglip.errors import UserError

# Of CLIP, which its image processors and open_clip assume.
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
# Pillow's filters by their numbers.
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_SQUARE = "must be a square"
_MOST_PIXELS = 65_536  # Of a side.


def refuse(file: str, key: str, value: Any, rule: str) -> NoReturn:
  """Raises the `UserError` of a value."""
  raise UserError(f"{file}: {key}={value!r}: {rule}")


def require(is_right: bool, file: str, key: str, value: Any, rule: str) -> None:
  """Refuses a value that is not right."""
  if not is_right:
    refuse(file, key, value, rule)


def as_object(value: Any, file: str, key: str) -> Mapping[str, Any]:
  """Returns a value that is a JSON object."""
  require(isinstance(value, Mapping), file, key, value, "must be an object")
  return value


def check_keys(
  given: Mapping[str, Any], known: Collection[str], file: str
) -> None:
  """Refuses a key that nobody knows, unless it is false or null."""
  for key, value in given.items():
    if key not in known and value is not None and value is not False:
      rule = "is not known here; take it out if it changes no pixel"
      refuse(file, key, value, rule)


def is_number(value: Any) -> bool:
  """Returns whether a value is one, and finite."""
  return type(value) in (int, float) and math.isfinite(value)


def pixels(value: Any, file: str, key: str) -> int:
  """Returns the pixels of a side."""
  right = type(value) is int and 1 <= value <= _MOST_PIXELS
  require(right, file, key, value, f"must be pixels, 1 to {_MOST_PIXELS:,}")
  return value


def side(size: Any, file: str, key: str) -> int:
  """Returns the side of a square: of a number, one or two in a list, a dict."""
  sides = size
  if isinstance(size, Mapping):
    named = {name for name, value in size.items() if value is not None}
    rule = f"{_SQUARE}: height and width"
    require(named == {"height", "width"}, file, key, size, rule)
    sides = [size["height"], size["width"]]
  elif not isinstance(size, list):
    sides = [size]
  right = len(sides) in (1, 2) and sides[0] == sides[-1]
  require(right, file, key, size, _SQUARE)
  return pixels(sides[0], file, key)


def rgb(
  value: Any, file: str, key: str, above: float = -math.inf
) -> tuple[float, ...]:
  """Returns three numbers, of one or of three."""
  values = value if isinstance(value, list | tuple) else [value]
  values = 3 * list(values) if len(values) == 1 else values
  right = len(values) == 3 and all(
    is_number(number) and number > above for number in values
  )
  least = "" if above == -math.inf else f" above {above:g}"
  require(right, file, key, value, f"must be one number or three{least}")
  return tuple(float(number) for number in values)


def levels(value: Any, file: str, key: str) -> tuple[int, ...]:
  """Returns a color, 0 to 255, of one level or of three."""
  found = rgb(value, file, key)
  right = all(0 <= level <= 255 and level == int(level) for level in found)
  require(right, file, key, value, "must be whole numbers from 0 to 255")
  return tuple(int(level) for level in found)


def resample(value: Any, file: str, key: str) -> str:
  """Returns one of Pillow's filters, of its number or its name."""
  if type(value) is int and 0 <= value < len(FILTERS):
    return FILTERS[value]
  name = str(value).rpartition(".")[2].lower()
  rule = f"must be 0 to 5, or one of {', '.join(FILTERS)}"
  require(isinstance(value, str) and name in FILTERS, file, key, value, rule)
  return name


def crop_fraction(size: int, resized: int, file: str, key: str) -> float:
  """Returns the share of a resized side that is kept."""
  rule = f"keeps {size} of {resized} pixels: must be a tenth to ten times"
  require(0.1 <= size / max(resized, 1) <= 10, file, key, size, rule)
  return size / resized
