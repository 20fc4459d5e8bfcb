"""A decoder writes captions, boxes of texts and texts of boxes.

LocCa (arXiv:2403.19596) as SigLIP 2 has it (arXiv:2502.14786, section 2.2). The
papers leave open whether the tasks are added or averaged, and of what the loss
is a mean; here they are added, and it is a mean over the targets of an example,
as in big_vision's CapPa: so slices and devices do not change it.

Shape letters: b examples of one slice, T tasks, L tokens.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax

from big_siglip import sharding
from big_siglip.losses import token_cross_entropy
from big_siglip.models.compute import Compute
from big_siglip.models.decoder import Decoded, Decoder
from big_siglip.models.flops import decoder_flops_per_example, num_patches
from big_siglip.objectives.term import Alone, Metrics, Slice, Term
from big_siglip.schema.sizes import resolve_image, resolve_text
from big_siglip.schema.terms import CAPTION_TASKS as TASKS
from big_siglip.schema.terms import extra_ids


def tasks_of(spec: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the tasks of a section of `config.terms` that have a weight."""
  return tuple(task for task in TASKS if spec[task] > 0)


def length_of(spec: Mapping[str, Any], model: Any) -> int:
  """Returns L, the tokens of a sequence: the text tower's unless said."""
  return spec["length"] or model.text.length


def make_decoder(
  spec: Mapping[str, Any],
  model: Any,
  mesh: Mesh | None = None,
) -> Decoder:
  """Returns the decoder of a section, with the shapes of the text tower.

  Args:
    spec: the section, of kind "captioning".
    model: `config.model`.
    mesh: whose devices share a batch; None: as the compiler likes.
  """
  size = resolve_text(model.text)
  depth = spec["depth"] or max(size.depth // 2, 1)
  split = None if mesh is None else sharding.batch_sharding(mesh)
  compute = Compute.of(model, split)
  if spec["slice_examples"] is not None:
    compute = dataclasses.replace(compute, keep_blocks=depth)
  return Decoder(
    dataclasses.replace(size, depth=depth),
    model.text.vocab_size + extra_ids(spec["boxes"], spec["bins"]),
    length_of(spec, model),
    spec["tie_embedding"],
    compute,
  )


def flops_per_example(
  spec: Mapping[str, Any],
  model: Any,
  *,
  patches: int | None = None,
  logits: bool = True,
) -> float:
  """Returns the FLOPs of its forward pass, if every token were a target.

  Args:
    spec: the section.
    model: `config.model`.
    patches: that it looks at; None: as many as the model sees.
    logits: False: without them, of which the data say how many there are.
  """
  width = resolve_image(model.image).width
  patches = patches or num_patches(model.image)
  decoder, texts = make_decoder(spec, model), len(tasks_of(spec))
  return decoder_flops_per_example(
    decoder, texts, patches, width, logits=logits
  )


def make(name: str, spec: Mapping[str, Any], config: Any, mesh: Mesh) -> Term:
  """Returns the term.

  Args:
    name: of the section, and of its parameters.
    spec: the section.
    config: the config.
    mesh: the devices that share a batch.
  """
  decoder, tasks = make_decoder(spec, config.model, mesh), tasks_of(spec)
  weights = np.array([spec[task] for task in tasks], np.float32)
  split = sharding.batch_sharding(mesh)

  def init(key: jax.Array, part: Slice) -> Any:
    targets = jnp.zeros((1, len(tasks), decoder.length), jnp.int32)
    return decoder.init(key, targets, _patches(part)[:1])["params"]

  def each(part: Slice) -> tuple[jax.Array, Metrics]:
    targets, real = part.batch["targets"], part.batch["target_weights"] > 0
    parallel = _parallel(part.keys, spec["parallel"], tasks)
    inputs = targets, _patches(part), part.seen.image_mask, parallel
    decoded = cast(
      Decoded, decoder.apply({"params": part.params[name]}, *inputs)
    )
    found = token_cross_entropy(
      *decoded, targets, real, chunk_size=spec["chunk_size"], sharding=split
    )
    count = real.sum(axis=2).astype(jnp.float32)
    losses = found.loss.sum(axis=2) / jnp.maximum(count, 1)
    observed = _observed(found, losses, count, parallel, tasks)
    return (losses * weights[None]).sum(axis=1), observed

  limit, alone = spec["slice_examples"], None
  if limit is not None:
    losses = (lambda part, _: each(part),)
    tokens = ("image_tokens",)
    alone = Alone(lambda _: None, losses, (name,), mesh, limit, tokens)
  return Term(
    name,
    each=each,
    weight=optax.constant_schedule(spec["weight"]),
    init=init,
    summary=_summary,
    alone=alone,
  )


def _patches(part: Slice) -> jax.Array:
  """Returns what the decoder looks at; `schema.terms` refuses to have none."""
  tokens = part.seen.image_tokens
  if tokens is None:
    raise TypeError("a decoder needs an image tower")
  return tokens


def _parallel(
  keys: jax.Array, share: float, tasks: tuple[str, ...]
) -> jax.Array | None:
  """Draws which captions are predicted in parallel; bT, or None for none."""
  if not share or "caption" not in tasks:
    return None
  drawn = jax.vmap(lambda key: jax.random.bernoulli(key, share))(keys)
  is_caption = np.array([task == "caption" for task in tasks])
  return drawn[:, None] & is_caption[None]


def _observed(found, losses, count, parallel, tasks) -> dict[str, jax.Array]:
  """Returns {"task/name": [b]}, sums whose quotients are metrics."""
  kinds = [(task, j, None) for j, task in enumerate(tasks)]
  if parallel is not None:
    j = tasks.index("caption")
    kinds[j] = ("caption", j, ~parallel[:, j])
    kinds.append(("parallel", j, parallel[:, j]))
  observed = {}
  for kind, j, counted in kinds:
    sums = {
      "losses": losses[:, j],
      "examples": (count[:, j] > 0).astype(jnp.float32),
      "tokens": count[:, j],
      "surprise": found.loss[:, j].sum(axis=1),
      "correct": found.correct[:, j].sum(axis=1),
    }
    for name, values in sums.items():
      if counted is not None:
        values = jnp.where(counted, values, 0)
      observed[f"{kind}/{name}"] = values
  return observed


def _summary(means: Metrics) -> dict[str, jax.Array]:
  """Returns loss, accuracy and perplexity of each task, of its own examples.

  Those of captions that are predicted in parallel go by "parallel". NaN where
  the batch had no such example.
  """
  metrics = {"loss": means["loss"]}
  kinds = {name.partition("/")[0] for name in means if "/" in name}
  for kind in sorted(kinds):
    examples, tokens = means[f"{kind}/examples"], means[f"{kind}/tokens"]
    metrics[f"{kind}_loss"] = means[f"{kind}/losses"] / examples
    metrics[f"{kind}_accuracy"] = means[f"{kind}/correct"] / tokens
    metrics[f"{kind}_perplexity"] = jnp.exp(means[f"{kind}/surprise"] / tokens)
  return metrics
