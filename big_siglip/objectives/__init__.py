"""Terms of the loss, a file each.

To add one: a function that returns a `term.Term`, in a file of its own, a line
in `make_terms`, and its fields in `big_siglip.schema.terms.TERMS`.
"""

from typing import Any

from jax.sharding import Mesh

from big_siglip.errors import UserError
from big_siglip.objectives import captioning, contrastive, distillation
from big_siglip.objectives.term import Carried, Slice, Term

__all__ = ["Carried", "make_terms", "Slice", "Term"]


def make_terms(config: Any, mesh: Mesh) -> tuple[Term, ...]:
  """Returns the terms of a config: of `config.loss`, and `config.terms`.

  Args:
    config: with `loss` and `terms`, {name: section with a `kind`}.
    mesh: the devices that share a batch.

  Raises:
    UserError: an unknown kind.
  """
  terms = []
  if config.loss.name != "none":
    terms.append(contrastive.make(config.loss, mesh))
  for name, spec in config.terms.items():
    match spec.kind:
      case "captioning":
        terms.append(captioning.make(name, spec, config, mesh))
      case "distillation":
        terms.append(distillation.make(name, spec, config, mesh))
      case _:
        raise UserError(f"config.terms.{name}.kind={spec.kind!r}: is not known")
  return tuple(terms)
