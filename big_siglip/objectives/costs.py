"""What the terms of a config cost beside the towers."""

from typing import Any

from big_siglip.models.flops import drawn_steps
from big_siglip.objectives import captioning, distillation


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


def _of_example(spec, model, patches: int | None, logits: bool) -> float:
  if spec.kind == "captioning":
    own = captioning.flops_per_example
    return 3 * own(spec, model, patches=patches, logits=logits)
  return distillation.step_flops_per_example(spec, model)
