"""What the terms of a config cost beside the towers."""

from typing import Any

from big_siglip.objectives import captioning, distillation


def flops_of_terms(config: Any, *, logits: bool = True) -> dict[str, float]:
  """Returns the FLOPs of a step of each of `config.terms`, by their names.

  What every term sees of the towers counts with these, not here; recomputation
  counts nowhere.

  Args:
    config: with `batch_size`, `model` and `terms`.
    logits: whether those of a decoder count, as if every token were a target.
  """
  batch, model = config.batch_size, config.model
  found = {}
  for name, spec in config.terms.items():
    if spec.kind == "captioning":
      own = captioning.flops_per_example(spec, model, logits=logits)
      found[name] = 3 * batch * own
    elif spec.kind == "distillation":
      found[name] = batch * distillation.step_flops_per_example(spec, model)
  return found
