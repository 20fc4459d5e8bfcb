"""The arrays of a file by the names that a format itself gives them.

Training wraps a model, and wrappers put words before its names; a language
model holds an image tower as a part of its own. What stands in the way of the
names, and changes no number, is taken away here and said in a line.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re

import numpy as np

from big_siglip.errors import UserError
from big_siglip.weights.rules import Reader, Shape

# What DistributedDataParallel, torch.compile, FSDP and activation checkpointing
# put before a name, or into it where they wrap a part.
_WRAPPERS = re.compile(
  r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module"
  r"|_checkpoint_wrapped_module)\."
)
# 0, 1, 2 ...: the places themselves, which older transformers saved.
_BUFFERS = re.compile(r"(?:.*\.)?position_ids")
_MOMENTS = ("opt/", "optimizer")  # How names of a trainer's own begin.
_MOST_NAMES = 3  # Of those that a line shows.


@dataclasses.dataclass(frozen=True)
class Naming:
  """How a format names its arrays.

  Attributes:
    image: what stands before the names of the image tower.
    image_sign: the name, behind that, by which a tower is known.
    text: what stands before the names of the text tower.
    text_signs: how names behind that begin.
    scale: the name of the logits' scale.
    bias: of their bias.
    others: how names behind `image` begin that are no part of the tower: a
      projector or a classifier.
  """

  image: str
  image_sign: str
  text: str
  text_signs: tuple[str, ...]
  scale: str
  bias: str
  others: tuple[str, ...] = ()


class Named:
  """A reader with a format's own names.

  Attributes:
    path: of the file.
    towers: which there are: ("image", "text") or ("image",).
    notes: a line for each thing that was taken away or added.
  """

  def __init__(
    self,
    reader: Reader,
    names: Mapping[str, str],
    towers: tuple[str, ...],
    notes: Sequence[str],
    zeros: Mapping[str, Shape] | None = None,
  ):
    """Shows the arrays `names` of a reader, {new: old}, and arrays of zeros."""
    self.path, self.towers = reader.path, towers
    self.notes = list(notes)
    self._reader, self._names = reader, names
    self._zeros = dict(zeros or {})

  def shapes(self) -> dict[str, Shape]:
    """Returns {key: shape}."""
    shapes = self._reader.shapes()
    own = {new: shapes[old] for new, old in self._names.items()}
    return {**own, **self._zeros}

  def read(self, key: str) -> np.ndarray:
    """Returns one array, valid until the thread's next call."""
    if key in self._zeros:
      return np.zeros(self._zeros[key], np.float32)
    return self._reader.read(self._names[key])


def recognize(
  reader: Reader, naming: Naming, *, whole: bool = False
) -> Named | None:
  """Returns the arrays of a SigLIP model by a format's names.

  Args:
    reader: a file.
    naming: of the format.
    whole: whether there must be two towers.

  Returns:
    None where none has its names.

  Raises:
    UserError: it holds several models.
  """
  plain = _plain_names(reader)
  signs = [
    key.removesuffix(naming.image_sign)
    for key in plain
    if key.endswith(naming.image_sign)
    and key[: -len(naming.image_sign)][-1:] in ("", ".", "/")
  ]
  roots = [
    sign.removesuffix(naming.image)
    for sign in signs
    if sign.endswith(naming.image)
  ]
  texts = [root for root in roots if whole or _has_text(plain, root, naming)]
  if texts:
    return _both(reader, naming, plain, _choose(reader, texts))
  if signs:
    return _image_alone(reader, naming, plain, _choose(reader, signs))
  return None


def _plain_names(reader: Reader) -> dict[str, str]:
  """Returns {name: old} without wrappers' words and what carries nothing."""
  plain: dict[str, str] = {}
  for old in reader.shapes():
    name = _WRAPPERS.sub("", old)
    if _BUFFERS.fullmatch(name):
      continue
    if ".lora_A." in name:
      raise UserError(
        f"{reader.path}: {old} is of an adapter (LoRA) that is not added yet: "
        "merge it where it was trained (merge_and_unload), or save it alone"
      )
    if name in plain:
      raise UserError(
        f"{reader.path}: {plain[name]} and {old} have one name, {name}, "
        "without what wrappers put before it"
      )
    plain[name] = old
  return plain


def _has_text(plain: Mapping[str, str], root: str, naming: Naming) -> bool:
  starts = tuple(f"{root}{naming.text}{sign}" for sign in naming.text_signs)
  return any(name.startswith(starts) for name in plain)


def _choose(reader: Reader, roots: Sequence[str]) -> str:
  """Returns the one of several models in a file that is meant."""
  for known in ("params/", "opt/target/"):  # Of big_vision, new and old.
    if known in roots:
      return known
  # Moments are named as what they are of.
  roots = [r for r in roots if not r.startswith(_MOMENTS)] or roots
  if len(roots) > 1:
    raise UserError(
      f"{reader.path}: holds {len(roots)} models, whose names begin with "
      f"{', '.join(map(repr, sorted(roots)))}; must hold one"
    )
  return roots[0]


def _both(reader: Reader, naming: Naming, plain, root: str) -> Named:
  names: dict[str, str] = {}
  for name, old in plain.items():
    short = name.removeprefix(root)
    if short in names:
      raise UserError(
        f"{reader.path}: holds {short} twice, as {names[short]} and {old}"
      )
    names[short] = old
  # Of a trainer's state the parameters are a part, of others nothing is.
  whole = root.endswith("/")
  left = {
    name
    for name in plain
    if (whole and not name.startswith(root))
    or (not whole and name.startswith("opt/"))
  }
  names = {short: old for short, old in names.items() if short not in left}
  notes = [*_prefixes(names), *_passed_over(left)]
  zeros = {}
  if naming.scale in names and naming.bias not in names:
    zeros[naming.bias] = (1,)
    notes.append(
      f"has no {naming.bias}: it is 0, as for a model trained with softmax"
    )
  return Named(reader, names, ("image", "text"), notes, zeros)


def _image_alone(reader: Reader, naming: Naming, plain, place: str) -> Named:
  others = tuple(place + other for other in naming.others)
  left = [
    name
    for name in plain
    if not name.startswith(place) or name.startswith(others)
  ]
  names = {
    naming.image + name.removeprefix(place): old
    for name, old in plain.items()
    if name not in left
  }
  where = f" (its names begin with {place!r})" if place else ""
  notes = [f"holds an image tower alone{where}", *_passed_over(left)]
  return Named(reader, names, ("image",), notes)


def _prefixes(names: Mapping[str, str]) -> list[str]:
  """Returns a line about what was taken off names, if anything was."""
  taken = {new: old for new, old in names.items() if new != old}
  words = {
    old.removesuffix(new) if old.endswith(new) else _WRAPPERS.findall(old)[0]
    for new, old in taken.items()
  }
  if not words - {"params/"}:
    return []
  shown = " or ".join(repr(word) for word in sorted(words)[:_MOST_NAMES])
  return [f"{shown} is taken off {len(taken)} of {len(names)} names"]


def _passed_over(names: Sequence[str]) -> list[str]:
  """Returns a line about arrays that are of no use here, if there are any."""
  if not names:
    return []
  groups: dict[str, int] = {}
  for name in names:
    start = re.findall(r"^[^./]*[./]?", name)[0]
    groups[start] = groups.get(start, 0) + 1
  ordered = sorted(groups.items(), key=lambda group: (-group[1], group[0]))
  shown = [f"{start} {count:,}" for start, count in ordered]
  more = ", ..." if len(shown) > _MOST_NAMES else ""
  return [
    f"{len(names):,} other arrays are passed over: "
    f"{', '.join(shown[:_MOST_NAMES])}{more}"
  ]
