"""Learning rates over training: warm-up, decay, cooldown."""

import jax
import jax.numpy as jnp
import optax

from big_siglip.errors import raise_problems
from big_siglip.schema.words import SCHEDULES


def learning_rate_schedule(
  *,
  name: str,
  learning_rate: float,
  total_steps: int,
  warmup_steps: int,
  cooldown_steps: int = 0,
  timescale: int = 10_000,
  stretch_from: int = 0,
  stretch: float = 1.0,
) -> optax.Schedule:
  """Returns the learning rate as a function of the step.

  The value is `learning_rate * warmup * decay * cooldown`, for
  t = step - warmup_steps and n = total_steps - warmup_steps:

    warmup   = min(1, step / warmup_steps), so the first step has rate 0
    cosine   : decay = (1 + cos(pi * t / n)) / 2
    linear   : decay = 1 - t / n
    rsqrt    : decay = sqrt(timescale / (timescale + t))
    constant : decay = 1
    cooldown = min(1, (total_steps - step) / cooldown_steps)

  with decay = 1 for t < 0. Cosine and linear reach 0 at `total_steps` by
  themselves; rsqrt and constant do so only by a cooldown. The rsqrt form is
  that of "Scaling Vision Transformers" (arXiv:2106.04560, section 3.5), shifted
  so that it continues the warm-up without a jump.

  A stretched schedule runs slower from a step on: `step` above is then
  stretch_from + (step - stretch_from) / stretch. So SigLIP 2 trains NaFlex over
  3.75 times the last tenth of its schedule (arXiv:2502.14786, section 2.4.2).

  Args:
    name: "cosine", "rsqrt", "linear" or "constant".
    learning_rate: the peak, reached at the end of the warm-up.
    total_steps: steps of the whole training.
    warmup_steps: steps from 0 to the peak; 0 starts at the peak.
    cooldown_steps: last steps, over which the rate falls linearly to 0.
    timescale: steps after which rsqrt has fallen to 1 / sqrt(2); the others
      ignore it.
    stretch_from: the step from which on it is stretched.
    stretch: by how much.

  Returns:
    step (int, Python or traced) -> float32 scalar.

  Raises:
    UserError: naming every field that is out of its range.
  """
  _check(
    name=name,
    learning_rate=learning_rate,
    total_steps=total_steps,
    warmup_steps=warmup_steps,
    cooldown_steps=cooldown_steps,
    timescale=timescale,
  )

  def schedule(step: jax.typing.ArrayLike) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    if stretch != 1:
      past = jnp.maximum(step - stretch_from, 0.0)
      step = jnp.minimum(step, stretch_from) + past / stretch
    after = jnp.maximum(step - warmup_steps, 0.0)
    # Warm-up may fill the whole training: then nothing is left to decay.
    progress = jnp.minimum(after / max(total_steps - warmup_steps, 1), 1.0)
    rate = learning_rate * _decay(name, progress, after, timescale)
    if warmup_steps:
      rate *= jnp.minimum(step / warmup_steps, 1.0)
    if cooldown_steps:
      rate *= jnp.clip((total_steps - step) / cooldown_steps, 0.0, 1.0)
    return rate

  return schedule


def _decay(
  name: str, progress: jax.Array, after: jax.Array, timescale: int
) -> jax.Array:
  """Returns the factor `after` steps past the warm-up; progress is 0 to 1."""
  if name == "cosine":
    return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
  if name == "linear":
    return 1.0 - progress
  if name == "rsqrt":
    return jnp.sqrt(timescale / (timescale + after))
  return jnp.ones_like(after)


def _check(
  *,
  name: str,
  learning_rate: float,
  total_steps: int,
  warmup_steps: int,
  cooldown_steps: int,
  timescale: int,
) -> None:
  """Raises one error for all fields that are out of range."""
  problems = []
  field = "config.optimizer"
  if name not in SCHEDULES:
    problems.append(
      f"{field}.schedule={name!r}: must be one of {', '.join(SCHEDULES)}"
    )
  # `not a > b` instead of `a <= b`: a rate of NaN is refused as well.
  if not learning_rate > 0:
    problems.append(
      f"{field}.learning_rate={learning_rate}: must be above 0 (to train "
      "nothing, freeze by config.optimizer.rules)"
    )
  if total_steps < 1:
    problems.append(f"config.total_steps={total_steps}: must be at least 1")
  for key, value in (("warmup", warmup_steps), ("cooldown", cooldown_steps)):
    if value < 0:
      problems.append(f"{field}.{key}_steps={value}: must be at least 0")
  if warmup_steps + cooldown_steps > total_steps:
    problems.append(
      f"{field}.warmup_steps={warmup_steps} + cooldown_steps="
      f"{cooldown_steps}: must not exceed config.total_steps={total_steps}"
    )
  if not timescale > 0:
    problems.append(f"{field}.timescale={timescale}: must be above 0")
  raise_problems(problems)
