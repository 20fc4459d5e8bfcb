"""The table that says which parameters are trained in which way."""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
import difflib
import math
import re
from typing import Any

import jax
import numpy as np

from big_siglip.errors import raise_problems
from big_siglip.sharding import path_string

# "blocks[:6]" of a rule, and the name of a block that is not stacked.
_SLICE = re.compile(r"blocks\[(-?\d*:-?\d*|-?\d+)\]")
_BLOCK = re.compile(r"/block_(\d+)/")
Rules = Sequence[tuple[str, Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Treatment:
  """How one parameter is trained.

  Attributes:
    freeze: no update, no optimizer state, no part in the gradient clipping.
    learning_rate: multiplies the learning rate at every step.
    weight_decay: multiplies the weight decay.
  """

  freeze: bool = False
  learning_rate: float = 1.0
  weight_decay: float = 1.0


Treatments = Mapping[str, Treatment | tuple[Treatment, ...]]


def match_rules(params: Any, rules: Rules) -> Treatments:
  """Returns {path: treatment} of every parameter.

  Blocks have rules of their own, whether `config.model.scan` stacks them or
  not: "text/encoder/block_[01]/.*" names the first two of a tower,
  "text/encoder/blocks[:6]/.*" the first six as Python's slices do, and
  "text/encoder/blocks/.*" all of them. A stacked parameter whose blocks are
  treated in several ways has a tuple, a treatment for each.

  Args:
    params: tree of parameters, arrays or `jax.ShapeDtypeStruct`s.
    rules: ordered (pattern, options). A parameter gets the options of the first
      pattern that matches its whole path (`re.fullmatch`), and no others:
      "image/encoder/.*" matches "image/encoder/norm/scale", "encoder" does not.
      An empty dict exempts from the rules below. Options are freeze=True alone,
      or learning_rate (above 0) and weight_decay (at least 0), which multiply.
      To fine-tune a pretrained image tower as in arXiv:2303.15343:
      ("image/.*", dict(learning_rate=0.1, weight_decay=0.0)).

  Raises:
    UserError: naming each rule that is malformed, has an unknown option, or
      decides about no parameter, be it that none matches or that earlier rules
      took them all.
  """
  units = _units(params)
  paths = [unit.path for unit in units]
  treatments, problems = {}, []
  for index, rule in enumerate(rules):
    try:
      pattern, options = rule
      treatment = _parse_options(dict(options))
      matches = [unit.path for unit in units if unit.matches(pattern)]
    except (TypeError, ValueError, re.error) as error:
      problems.append(f"config.optimizer.rules[{index}]={rule!r}: {error}")
      continue
    new = [path for path in matches if path not in treatments]
    if not new:
      problems.append(
        f"config.optimizer.rules[{index}]={pattern!r}: "
        + _why_useless(pattern, matches, paths)
      )
    treatments.update(dict.fromkeys(new, treatment))
  raise_problems(problems)
  found: dict[str, list[Treatment]] = {}
  for unit in units:
    own = treatments.get(unit.path, Treatment())
    found.setdefault(unit.leaf, []).append(own)
  return {
    leaf: own[0] if len(set(own)) == 1 else tuple(own)
    for leaf, own in found.items()
  }


def by_block(
  treatments: Treatments, field: str, path: str, like: Any
) -> np.ndarray | None:
  """Returns a field of each block of a stacked parameter.

  Args:
    treatments: of `match_rules`.
    field: of `Treatment`.
    path: of the parameter.
    like: the parameter, or what has its dimensions.

  Returns:
    An array that broadcasts to the parameter, or None where all of it is
    treated alike.
  """
  own = treatments[path]
  if isinstance(own, Treatment):
    return None
  values = np.array([getattr(treatment, field) for treatment in own])
  return values.reshape(len(own), *(1,) * (len(like.shape) - 1))


@dataclasses.dataclass(frozen=True)
class _Unit:
  """What one rule decides about: a parameter, or one block of a stacked one.

  Attributes:
    leaf: the parameter's path.
    path: its path where blocks are not stacked.
    block: the number of the block; None: it belongs to none.
    depth: how many blocks there are.
  """

  leaf: str
  path: str
  block: int | None = None
  depth: int = 0

  def matches(self, pattern: str) -> bool:
    """Returns whether a rule's pattern matches the path, in any of its forms.

    Raises:
      re.error: it is no regular expression.
    """
    if self.block is None:
      return re.fullmatch(pattern, self.path) is not None
    sliced = _SLICE.sub(self._in_slice, pattern)
    forms = [self.path]
    if re.search(r"blocks(?!\[)", pattern):  # All of them, stacked or not.
      forms.append(self.path.replace(f"/block_{self.block}/", "/blocks/", 1))
    return any(re.fullmatch(sliced, form) for form in forms)

  def _in_slice(self, found: re.Match) -> str:
    ends = [int(end) if end else None for end in found[1].split(":")]
    if len(ends) == 1:  # One of them; from the end, if below 0.
      inside = self.block in (ends[0], (ends[0] or 0) + self.depth)
    else:
      inside = self.block in range(self.depth)[slice(*ends)]
    return f"block_{self.block}" if inside else "(?!)"


def _units(params: Any) -> list[_Unit]:
  leaves = jax.tree_util.tree_leaves_with_path(params)
  shapes = [(path_string(path), leaf.shape) for path, leaf in leaves]
  depths: dict[str, int] = {}  # Of towers whose blocks are not stacked.
  for path, _ in shapes:
    if found := _BLOCK.search(path):
      tower = path[: found.start()]
      depths[tower] = max(depths.get(tower, 0), int(found[1]) + 1)
  units = []
  for path, shape in shapes:
    if found := _BLOCK.search(path):
      depth = depths[path[: found.start()]]
      units.append(_Unit(path, path, int(found[1]), depth))
    elif "/blocks/" in path:
      units += [
        _Unit(path, path.replace("/blocks/", f"/block_{i}/", 1), i, shape[0])
        for i in range(shape[0])
      ]
    else:
      units.append(_Unit(path, path))
  return units


def frozen_mask(params: Any, rules: Rules) -> Any:
  """Returns the tree of `params` with True where a rule freezes the parameter.

  Where it freezes some blocks of a stacked parameter, an array of bools that
  broadcasts to it.

  For `jax.lax.stop_gradient` on these leaves in the loss: without it their
  gradients are computed, only to be dropped by the optimizer.

  Raises:
    UserError: as `match_rules`.
  """
  treatments = match_rules(params, rules)

  def frozen(key: Any, leaf: Any) -> bool | np.ndarray:
    path = path_string(key)
    blocks = by_block(treatments, "freeze", path, leaf)
    return treatments[path].freeze if blocks is None else blocks

  return jax.tree_util.tree_map_with_path(frozen, params)


def map_paths(function: Callable[[str], Any], params: Any) -> Any:
  """Returns the tree of `params` with function(path) for every leaf."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: function(path_string(path)), params
  )


def parameter_of(path: str, names: Collection[str]) -> str:
  """Returns the parameter that a leaf of another tree belongs to, or "".

  Args:
    path: of a leaf of a train state, such as ".../mu/image/head/kernel".
    names: the paths of all parameters.
  """
  parts = path.split("/")
  tails = ("/".join(parts[start:]) for start in range(len(parts)))
  return next((tail for tail in tails if tail in names), "")


def _parse_options(options: dict[str, Any]) -> Treatment:
  """Returns the treatment that the options of one rule ask for."""
  fields = [field.name for field in dataclasses.fields(Treatment)]
  unknown = sorted(set(options) - set(fields))
  if unknown:
    raise ValueError(
      f"unknown option {', '.join(unknown)}; known: {', '.join(fields)}"
    )
  treatment = Treatment(**options)
  for field in ("learning_rate", "weight_decay"):
    if not isinstance(options.get(field, 1.0), int | float):
      raise ValueError(f"{field} must be a number")
  if not isinstance(treatment.freeze, bool):
    raise ValueError("freeze must be True or False")
  if treatment.freeze and len(options) > 1:
    raise ValueError("freeze=True excludes the other options")
  if not 0 < treatment.learning_rate < math.inf:
    raise ValueError("learning_rate must be above 0 (or else freeze=True)")
  if not 0 <= treatment.weight_decay < math.inf:
    raise ValueError("weight_decay must be at least 0")
  return treatment


def _why_useless(
  pattern: str, matches: Sequence[str], paths: Sequence[str]
) -> str:
  """Says why a rule decides about no parameter."""
  if matches:
    return (
      f"earlier rules match all of its {len(matches)} parameters, such as "
      f"{matches[0]!r}; the first match counts, so move it up or drop it"
    )
  close = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3)
  return "matches no parameter's whole path; close paths: " + ", ".join(
    close or list(paths)[:3]
  )
