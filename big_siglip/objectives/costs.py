"""What the terms of a config cost beside the towers."""

from collections.abc import Mapping
from typing import Any

from big_siglip.models.flops import drawn_steps, image_flops
from big_siglip.objectives import captioning
from big_siglip.objectives.masked import hidden_count
from big_siglip.schema.sizes import grid_side, resolve_image


def flops_of_terms(config: Any, *, logits: bool = True) -> dict[str, float]:
  """Returns the FLOPs of a step of each of `config.terms`, by their names.

  What every term sees of the towers counts with these, not here; recomputation
  counts nowhere. Where the number of patches is drawn it is the mean of all.

  Args:
    config: the whole config.
    logits: whether those of a decoder count, as if every token were a target.
  """
  steps = drawn_steps(config)
  return {
    name: sum(
      examples * _of_example(spec, config.model, patches, logits)
      for examples, patches in steps
    )
    / len(steps)
    for name, spec in config.terms.items()
  }


def distillation_flops(spec: Mapping[str, Any], model: Any) -> float:
  """Returns the FLOPs of an example in a step; of the teacher, forward alone.

  Args:
    spec: the section.
    model: `config.model`.
  """
  image = model.image
  size = resolve_image(image)
  patches = grid_side(image) ** 2
  whole = image_flops(image, patches)
  hidden, bottleneck = spec["hidden"], spec["bottleneck"]
  layers = (size.width + hidden) * hidden + hidden * bottleneck
  head = 2 * (layers + bottleneck * spec["prototypes"])
  total = whole
  if spec["local"]:
    count = spec["local_count"]
    side = spec["local_size"] // (size.patch_size or 1)
    small = image_flops(image, side**2)
    total += 3 * count * (small + head) + head
  if spec["masked"]:
    masked = hidden_count(patches, spec["masked_share"])
    total += 3 * (whole + masked * head) + masked * head
  return total


def _of_example(spec, model, patches: int | None, logits: bool) -> float:
  if spec.kind == "captioning":
    own = captioning.flops_per_example
    return 3 * own(spec, model, patches=patches, logits=logits)
  return distillation_flops(spec, model)
