"""The table that says which parameters are trained in which way."""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
import difflib
import math
import re
from typing import Any

import jax

from big_siglip.errors import raise_problems
from big_siglip.sharding import path_string

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


def match_rules(params: Any, rules: Rules) -> dict[str, Treatment]:
  """Returns {path: treatment} of every parameter.

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
  leaves = jax.tree_util.tree_leaves_with_path(params)
  paths = [path_string(path) for path, _ in leaves]
  treatments, problems = {}, []
  for index, rule in enumerate(rules):
    try:
      pattern, options = rule
      treatment = _parse_options(dict(options))
      matches = [path for path in paths if re.fullmatch(pattern, path)]
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
  return {path: treatments.get(path, Treatment()) for path in paths}


def frozen_mask(params: Any, rules: Rules) -> Any:
  """Returns the tree of `params` with True where a rule freezes the parameter.

  For `jax.lax.stop_gradient` on these leaves in the loss: without it their
  gradients are computed, only to be dropped by the optimizer.

  Raises:
    UserError: as `match_rules`.
  """
  treatments = match_rules(params, rules)
  return map_paths(lambda path: treatments[path].freeze, params)


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
