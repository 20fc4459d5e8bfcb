"""What makes the section `config.data` legal."""

import math
from typing import Any

from big_siglip.schema.checks import Checker


def check_source(check: Checker) -> None:
  """Checks what is taken of a data set."""
  check.require(
    check["data.filters.min_score"] is None
    or check["data.filters.score_key"] is not None,
    "data.filters.score_key",
    "must name the field that config.data.filters.min_score is about",
  )
  check.require(
    all(
      isinstance(t, str) and t.count("{}") == 1 for t in check["data.templates"]
    ),
    "data.templates",
    "must be texts with one {} each, such as 'a photo of {}'",
  )
  keys = check["data.text_keys"]
  pairs = [k for k in keys if not isinstance(k, str)]
  check.require(
    len(pairs) in (0, len(keys)) and all(map(_is_weighted, pairs)),
    "data.text_keys",
    "must be names of fields, or (name, weight) pairs with weights above 0,"
    " and finite",
  )
  check.require(
    not pairs or check["data.captions"] == "random",
    "data.captions",
    "must be random for config.data.text_keys with weights: all captions are "
    "as likely",
  )


def check_mixture(check: Checker) -> None:
  """Checks the sources that are mixed, and what is left out of them."""
  check.require(
    check["data.deduplicate"] == "none" or check["data.captions"] == "random",
    "data.deduplicate",
    "must be none with config.data.captions='all', where an image is there for "
    "each of its captions",
  )
  entries = check.config.data.mixture
  some_given = any(entry.weight is not None for entry in entries.values())
  for name, entry in entries.items():
    weight = f"data.mixture.{name}.weight"
    if entry.weight is None:
      rule = "must be a number, as another entry's is, or all be None"
      check.require(not some_given, weight, rule)
    check.require(
      entry.name != "embeddings",
      f"data.mixture.{name}.name",
      "must not be embeddings: mix the images before they are embedded",
    )


def check_embeddings(check: Checker) -> None:
  """Images that are embeddings leave nothing to augment or to embed."""
  check.require(
    check["init.path"] is not None,
    "init.path",
    "must name the weights that made the embeddings: their image tower belongs "
    "to the model that is trained",
  )
  for field, is_set in (
    ("mixture", len(check["data.mixture"]) > 0),
    ("deduplicate", check["data.deduplicate"] != "none"),
    ("patch_lengths", check["data.patch_lengths"] is not None),
    ("halve_from", check["data.halve_from"] is not None),
  ):
    rule = "cannot be set with config.data.name='embeddings'"
    check.require(not is_set, f"data.{field}", rule)
  check.require(
    check["data.crop_min_area"] == 1 and not check["data.flip"],
    "data.crop_min_area",
    "must be 1.0, and data.flip False, with config.data.name='embeddings'",
  )
  for name in check.config.evals:
    check.require(
      check[f"evals.{name}.data"] == "embeddings",
      f"evals.{name}.data",
      "must be embeddings, as config.data.name: there is no image tower",
    )


def _is_weighted(pair: Any) -> bool:
  return (
    isinstance(pair, tuple | list)
    and len(pair) == 2
    and isinstance(pair[0], str)
    and isinstance(pair[1], int | float)
    and 0 < pair[1] < math.inf
  )
