"""SigLIP's own term: every image-text pair of the batch is a question."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from big_siglip import losses, sharding
from big_siglip.objectives.term import Batch, Embeddings, Term

NAME = "contrastive"


def make(config: Any, mesh: Mesh) -> Term:
  """Returns the term of a `config.loss`, over all pairs of a batch.

  Args:
    config: name, chunk_size, dtype, duplicates and same.
    mesh: the devices of a ring.
  """
  loss_fn, identify = make_loss(config, mesh), make_identify(config)

  def pairs(
    params: Any, embeddings: Embeddings, batch: Batch
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    same = {} if identify is None else {"ids": identify(batch)}
    loss, statistics = loss_fn(
      *embeddings, params["logit_scale"], params["logit_bias"], **same
    )
    metrics = {
      "positive_logit": statistics.positive,
      "negative_logit": statistics.negative,
      "hardest_negative_logit": statistics.hardest_negative.mean(),
    }
    if statistics.duplicates is not None:
      metrics["duplicate_pairs"] = statistics.duplicates
    return loss, metrics

  return Term(NAME, pairs=pairs)


def make_loss(config: Any, mesh: Mesh) -> Callable[..., Any]:
  """Returns (image, text, scale, bias) -> (loss, `losses.LogitStatistics`).

  It takes the ids of `make_identify` too where that is not None.

  Args:
    config: as of `make`.
    mesh: the same.
  """
  options: dict[str, Any] = {"statistics": True}
  if config.duplicates != "negative":
    options["duplicates"] = config.duplicates
  if config.name == "sigmoid":
    return functools.partial(losses.sigmoid_loss, **options)
  if config.name == "softmax":
    return functools.partial(losses.softmax_loss, **options)
  ring = losses.ring_sigmoid_loss
  if config.name == "ring_softmax":
    ring = losses.ring_softmax_loss
  return functools.partial(
    ring,
    mesh=mesh,
    axes=sharding.BATCH_AXES,
    chunk_size=config.chunk_size,
    dtype=config.dtype,
    **options,
  )


def make_identify(config: Any) -> Callable[[Any], jax.Array] | None:
  """Returns the function from a batch to ids, or None where none are needed.

  Args:
    config: as of `make`.
  """
  if config.duplicates == "negative":
    return None
  same = config.same

  def identify(batch: Mapping[str, jax.Array]) -> jax.Array:
    found = []
    if same in ("text", "either"):
      found.append(losses.text_id(batch["text"]))
    if same in ("image", "either"):
      found.append(losses.image_id(batch["image_index"]))
    return jnp.concatenate(found, axis=1)

  return identify
