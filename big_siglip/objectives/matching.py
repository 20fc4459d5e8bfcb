"""What self-distillation and masked prediction share: heads that are matched.

A student's vectors and a teacher's go through heads of their own to prototypes;
the student's distribution over these is to be the teacher's, which is centred
and sharpened so that it neither becomes one prototype nor all of them: DINO
(arXiv:2104.14294, section 3.1), per patch iBOT (arXiv:2111.07832, section 3.2).

Shape letters: b examples, n vectors of the student and m of the teacher (n, or
one that all n are matched with), D width, d of the bottleneck, K prototypes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from big_siglip.losses import (
  prototype_cross_entropy,
  Prototypes,
  summed_distribution,
)
from big_siglip.models.prototype_head import PrototypeHead, unit
from big_siglip.objectives.term import Metrics


@dataclasses.dataclass(frozen=True)
class Matching:
  """How vectors are matched.

  Attributes:
    head: of the student and of the teacher.
    student_temperature: that the student's scores are divided by.
    teacher_temperatures: the same of the teacher, at first and in the end.
    warmup_steps: from the first to the last of these, linearly.
    frozen_steps: for so long the student's prototypes stay as they are.
    centre_momentum: of the mean scores that are taken off the teacher's.
    chunk_size: prototypes with which all vectors are compared at once.
    whole: how prototypes lie where each device has all of them.
  """

  head: PrototypeHead
  student_temperature: float
  teacher_temperatures: tuple[float, float]
  warmup_steps: int
  frozen_steps: int
  centre_momentum: float
  chunk_size: int
  whole: NamedSharding | None = None

  def init(self, key: jax.Array, width: int) -> Any:
    """Returns a head's parameters for vectors of `width`, D."""
    return self.head.init(key, jnp.zeros((1, width)))["params"]

  def first_centre(self) -> jax.Array:
    """Returns what is taken off at the first step; K."""
    return jnp.zeros(self.head.prototypes)

  def __call__(
    self,
    student: jax.Array,
    teacher: jax.Array,
    own: Any,
    theirs: Any,
    centre: jax.Array,
    steps: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns [b] losses, and what `metrics` and `next_centre` ask for.

    Args:
      student: bnD.
      teacher: bmD, without a gradient.
      own: the student's head.
      theirs: the teacher's, without a gradient.
      centre: K, of the step before.
      steps: (), that were taken with this term.
    """
    z, directions = self._head(own, student)
    frozen = jax.lax.stop_gradient(directions)
    directions = jnp.where(steps < self.frozen_steps, frozen, directions)
    z_teacher, of_teacher = jax.lax.stop_gradient(self._head(theirs, teacher))
    first, last = self.teacher_temperatures
    share = jnp.minimum(steps / max(self.warmup_steps, 1), 1)
    temperature = first + (last - first) * share if self.warmup_steps else last
    prototypes = Prototypes(of_teacher, centre, jnp.float32(temperature))
    dtype = self.head.dtype
    found = prototype_cross_entropy(
      z.astype(dtype),
      z_teacher.astype(dtype),
      Prototypes(
        directions,
        jnp.zeros_like(centre),
        jnp.float32(self.student_temperature),
      ),
      prototypes,
      chunk_size=self.chunk_size,
      whole=self.whole,
    )
    # Of one vector an example: of its patches, in an order that was drawn, the
    # first stands for all.
    drawn = summed_distribution(
      z_teacher[:, :1].astype(dtype),
      found.log_total[:, :1],
      prototypes,
      chunk_size=self.chunk_size,
    )
    return found.loss.mean(axis=1), {
      "loss": found.loss.mean(axis=1),
      "entropy": found.entropy.mean(axis=1),
      "cosine": (z * z_teacher).sum(axis=-1).mean(axis=1),
      "vector": z_teacher.mean(axis=1),
      "distribution": drawn[None],  # [1, K]: a sum over examples, as one.
    }

  def next_centre(
    self, centre: jax.Array, theirs: Any, means: Metrics
  ) -> jax.Array:
    """Returns momentum * centre + (1 - momentum) * mean of the scores; K.

    Scores are linear in the vectors, so their mean is the score of the mean: no
    score has to be kept, and slices change nothing.

    Args:
      centre: K.
      theirs: the teacher's head in the step that `means` are of.
      means: over the global batch, of what was observed.
    """
    mean = jnp.dot(
      means["vector"], unit(theirs["prototypes"], 0), precision="highest"
    )
    return centre + (1 - self.centre_momentum) * (mean - centre)

  def metrics(self, means: Metrics) -> dict[str, jax.Array]:
    """Returns loss, and what tells of a collapse; all ().

    `entropy` of the teacher's distributions is log K where they say nothing;
    `batch_entropy`, of their mean, is 0 where all are the same prototype; `kl`
    falls to 0 with either (DINO, section 5.3). `cosine` is of the student's and
    the teacher's bottlenecks.
    """
    mean = means["distribution"]
    return {
      "loss": means["loss"],
      "entropy": means["entropy"],
      "batch_entropy": -(mean * jnp.log(jnp.maximum(mean, 1e-30))).sum(),
      "kl": means["loss"] - means["entropy"],
      "cosine": means["cosine"],
    }

  def _head(self, params: Any, x: jax.Array) -> Any:
    return self.head.apply({"params": params}, x)
