"""All terms of a loss as the two functions that the exact step asks for.

Shape letters: B examples of the global batch, b of one slice.
"""

from collections.abc import Callable, Sequence
import functools
import operator
from typing import Any
import zlib

import jax
import jax.numpy as jnp

from big_siglip.microbatch import at_once
from big_siglip.models.towers import Look, Seen
from big_siglip.objectives.term import (
  Alone,
  Batch,
  Embeddings,
  Metrics,
  Slice,
  Term,
)

Terms = Sequence[Term]
_ROW = "row"  # Of the global batch, beside the arrays of the batch.


def forward(
  terms: Terms,
  look: Look,
  *,
  carry: Any,
  step: jax.Array,
  seed: int,
  batch_size: int,
) -> Callable[[Any, Batch], tuple[Embeddings, tuple[jax.Array, Any]]]:
  """Returns (parameters, part) -> (embeddings, (own loss, observed)).

  The own loss is that of all `Term.each`, each times its weight, and
  {term: {name: mean}} what they observed: sums over the part, divided by B. So
  those of all parts add up to those of the batch.

  Args:
    terms: all of them.
    look: see `towers.Look`.
    carry: {term: what it carries}, or None.
    step: (), whose number it is.
    seed: of the run.
    batch_size: B.
  """
  own = [(term, term.each) for term in terms if term.each is not None]

  def sliced(params: Any, others: Any, rows: Any, seen: Seen) -> Slice:
    """Returns what a term sees."""
    kept, key = others
    part, numbers = rows
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    return Slice(params, kept, part, seen, look, keys)

  def means(values: jax.Array, metrics: Metrics) -> Metrics:
    """Returns sums over the rows, divided by B."""
    return jax.tree.map(
      lambda x: x.sum(axis=0) / batch_size, {**metrics, "loss": values}
    )

  def run(params: Any, part: Batch):
    part = dict(part)
    numbers = part.pop(_ROW, None)
    seen = look(params, part)
    loss, observed = jnp.zeros(()), {}
    for term, each in own:
      key = jax.random.fold_in(_key(seed, term), step)
      others, rows = ((carry or {}).get(term.name), key), (part, numbers)
      if term.alone is None:
        found = means(*each(sliced(params, others, rows, seen)))
      else:
        found = _alone(term.alone, sliced, means, params, others, rows, seen)
      loss += _weighted(term, step, found["loss"])
      observed[term.name] = found
    return (seen.image, seen.text), (loss, observed)

  return run


def pairs(
  terms: Terms, *, step: jax.Array
) -> Callable[[Any, Embeddings, Batch], tuple[jax.Array, Metrics]]:
  """Returns (parameters, embeddings of all B, batch) -> (loss, metrics).

  Args:
    terms: all of them.
    step: (), whose number it is.
  """
  own = [(term, term.pairs) for term in terms if term.pairs is not None]

  def run(params: Any, embeddings: Embeddings, batch: Batch):
    total, metrics = None, {}
    for term, of_pairs in own:
      loss, found = of_pairs(params, embeddings, batch)
      metrics |= found
      if len(terms) > 1:
        metrics[f"{term.name}/loss"] = loss
      loss = _weighted(term, step, loss)
      total = loss if total is None else total + loss
    return jnp.zeros(()) if total is None else total, metrics

  return run


def with_rows(terms: Terms, batch: Batch) -> Batch:
  """Returns the batch with the number of each row, where a term draws by it."""
  if all(term.each is None for term in terms):
    return batch
  size = len(next(iter(batch.values())))
  return {**batch, _ROW: jnp.arange(size, dtype=jnp.int32)}


def init_params(
  terms: Terms, rng: jax.Array, params: Any, batch: Batch, look: Look
) -> dict[str, Any]:
  """Returns {term: fresh parameters} of the terms that have some.

  Args:
    terms: all of them.
    rng: of the model's initialization.
    params: the model's.
    batch: example inputs.
    look: see `towers.Look`.
  """
  fresh = {}
  for term in terms:
    if term.init is not None:
      key = jax.random.fold_in(rng, _number(term))
      keys = jax.random.split(key, len(next(iter(batch.values()))))
      seen = look(params, batch)
      part = Slice(params, None, batch, seen, look, keys)
      fresh[term.name] = term.init(key, part)
  return fresh


def init_carry(terms: Terms, params: Any) -> dict[str, Any] | None:
  """Returns {term: what its first step gets}; None where nothing is carried."""
  carry = {
    term.name: term.carried.init(params)
    for term in terms
    if term.carried is not None
  }
  # Copies, since a step donates the parameters and a teacher of them both.
  return jax.tree.map(jnp.copy, carry) or None


def advance(terms: Terms, carry: Any, params: Any, observed: Any) -> Any:
  """Returns what the next step gets, as `init_carry` returned the first."""
  if carry is None:
    return None
  return {
    term.name: term.carried.advance(
      carry[term.name], params, observed.get(term.name, {})
    )
    for term in terms
    if term.carried is not None
  }


def scalars(terms: Terms, observed: Any) -> dict[str, jax.Array]:
  """Returns what is logged of what terms observed: "term/name"."""
  found = {}
  for term in terms:
    means = observed.get(term.name, {})
    if term.summary is not None:
      means = term.summary(means)
    for name, value in means.items():
      if value.ndim == 0:
        found[f"{term.name}/{name}"] = value
  return found


def _alone(
  how: Alone,
  sliced: Callable[..., Slice],
  means: Callable[[jax.Array, Metrics], Metrics],
  params: Any,
  others: Any,
  rows: Any,
  seen: Seen,
) -> Metrics:
  """Returns the means of what a term observes that is taken back by itself.

  Args:
    how: that is.
    sliced: (parameters, others, rows, what the model sees) -> the examples.
    means: (losses, observed) -> their means over the batch.
    params: of model and terms.
    others: for `sliced`.
    rows: the same.
    seen: the same.
  """
  trained = {k: x for k, x in params.items() if k in how.sections}
  fixed = {k: x for k, x in params.items() if k not in how.sections}

  inputs = {name: getattr(seen, name) for name in how.seen}

  def part_of(trained, inputs, others, given):
    fixed, *others = others
    rows, mask = given
    own = Seen(**inputs, image_mask=mask)
    return sliced({**fixed, **trained}, others, rows, own)

  def prepare(trained, others, given):
    return given, how.prepare(part_of(trained, {}, others, given))

  def loss_of(each, trained, inputs, others, prepared):
    given, prepared = prepared
    part = part_of(trained, inputs, others, given)
    found = means(*each(part, prepared))
    return found["loss"], found

  losses = [functools.partial(loss_of, each) for each in how.losses]
  run = at_once(losses, prepare, how.slices(len(rows[1])))
  given = rows, seen.image_mask
  loss, observed = run(trained, inputs, (fixed, *others), given)
  return {**functools.reduce(operator.or_, observed), "loss": loss}


def _weighted(term: Term, step: jax.Array, loss: jax.Array) -> jax.Array:
  return loss if term.weight is None else term.weight(step) * loss


def _key(seed: int, term: Term) -> jax.Array:
  return jax.random.fold_in(jax.random.key(seed), _number(term))


def _number(term: Term) -> int:
  """Returns a number of the term's own, whatever other terms there are."""
  return zlib.crc32(term.name.encode())
