"""Loss health: what the sigmoid sees of right and wrong pairs."""

from collections import Counter
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_siglip import progress
from big_siglip.errors import UserError
from big_siglip.evaluators.embed import Embedders, Rows
from big_siglip.evaluators.pairs import embed_pairs
from big_siglip.evaluators.result import Result
from big_siglip.evaluators.retrieval import Captions

_BINS = 80  # Of logits, from bias - scale to bias + scale.


@dataclasses.dataclass(frozen=True)
class LossHealth:
  """Logits of all pairs of a data set, and its duplicates.

  Attributes:
    images: padded batches with "image", "digest" [b, 2], "index" and
      "mask".
    captions: of the images.
    texts: the captions themselves, by image; training draws one of them.
    num_images: how many there are, with those that cannot be read.
    embedders: embed images and texts, and know scale and bias.
    loss_batch_size: B, the batch that the loss is thought over.
  """

  images: Rows
  captions: Captions
  texts: Sequence[Sequence[str]]
  num_images: int
  embedders: Embedders
  loss_batch_size: int

  def __post_init__(self):
    self._check(self.num_images)

  def _check(self, count: int) -> None:
    if count < self.loss_batch_size:
      raise UserError(
        f"config.evals: loss_batch_size={self.loss_batch_size}: must be at "
        f"most the {count} images of the data set"
      )

  def __call__(self, params: Any) -> Result:
    """Returns numbers about the two kinds of pairs.

    "scale" and "bias" of the logits; "positive/..." and "negative/..." mean,
    std and "wrong" (the share on the wrong side of 0); "loss", that of a random
    batch of B, split into "positive/loss" and "negative/loss" (the expected
    sum over one image's pairs); "duplicates/captions" and "duplicates/images",
    how many pairs of examples with the same caption or the same image file a
    random batch of B is expected to hold: the loss takes each for a wrong pair,
    twice.

    Raises:
      UserError: fewer images than B can be read.
    """
    pairs, values, counts = embed_pairs(
      self.embedders, params, self.images, self.captions, ("digest",)
    )
    count, batch = len(pairs.image), self.loss_batch_size
    self._check(count)  # Some may not have been readable.
    scale, bias = self.embedders.logits(params)
    with progress.waiting("measuring all pairs"):
      sums = pairs.sum(_logits, scale, bias)
    numbers = np.array([pairs.num_positive, pairs.num_negative])
    mean = sums["sum"] / numbers
    spread = np.sqrt(np.maximum(sums["square"] / numbers - mean**2, 0))
    loss = sums["loss"] / numbers * np.array([1, batch - 1])
    metrics = {"scale": scale, "bias": bias, "loss": float(loss.sum())}
    for side, name in enumerate(("positive", "negative")):
      metrics |= {
        f"{name}/mean": float(bias + mean[side]),
        f"{name}/std": float(spread[side]),
        f"{name}/wrong": float(sums["wrong"][side] / numbers[side]),
        f"{name}/loss": float(loss[side]),
      }
    texts = [self.texts[index] for index in values["index"]]
    digests = [[bytes(digest)] for digest in values["digest"]]
    metrics |= {
      "duplicates/captions": expected_duplicates(texts, batch),
      "duplicates/images": expected_duplicates(digests, batch),
      "skipped": self.num_images - counts.pop("read"),
      **counts,
    }
    edges = bias + scale * np.linspace(-1, 1, _BINS + 1)
    return Result(
      metrics,
      {
        "edges": edges.tolist(),
        "positive": sums["histogram"][0].astype(int).tolist(),
        "negative": sums["histogram"][1].astype(int).tolist(),
      },
      images=count,
    )


def expected_duplicates(
  choices: Sequence[Sequence[Any]], batch_size: int
) -> float:
  """Returns the expected pairs of equal draws in a random batch, exactly.

  Args:
    choices: what each example draws one of, with equal chances.
    batch_size: examples without repetition in a batch; at most their number.
  """
  total, alone = Counter(), Counter()
  for of_example in choices:
    for value, times in Counter(of_example).items():
      chance = times / len(of_example)
      total[value] += chance
      alone[value] += chance**2
  # The sum over ordered pairs of examples of the chance to be equal.
  equal = sum(total[value] ** 2 - alone[value] for value in total)
  count = len(choices)
  pairs = batch_size * (batch_size - 1) / 2
  return float(max(equal, 0.0) / (count * (count - 1)) * pairs)


def _logits(cosines, positive, counts, scale, bias):
  """Sums of right and of wrong pairs; logits without their bias."""
  both = jnp.stack([positive, counts & ~positive])  # 2nm
  logits = scale * cosines
  sign = jnp.where(positive, 1.0, -1.0)
  bins = jnp.clip((cosines + 1) * (_BINS / 2), 0, _BINS - 1).astype(jnp.int32)

  def total(values):
    return jnp.where(both, values[None], 0).sum((1, 2))

  return {
    "sum": total(logits),
    "square": total(logits**2),
    "loss": total(-jax.nn.log_sigmoid(sign * (logits + bias))),
    "wrong": total((sign * (logits + bias) <= 0).astype(jnp.int32)),
    "histogram": jax.lax.map(
      lambda b: total((bins == b).astype(jnp.int32)), jnp.arange(_BINS)
    ).T,
  }
