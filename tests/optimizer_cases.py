"""Parameters, gradients and config that the optimizer's tests share."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

STEPS = 8


def make_config(**fields):
  return ml_collections.ConfigDict(
    dict(
      name="adamw",
      learning_rate=1e-3,
      schedule="cosine",
      warmup_steps=2,
      cooldown_steps=0,
      timescale=10_000,
      schedule_steps=None,
      stretch_from=0,
      stretch=1.0,
      b1=0.9,
      b2=0.95,
      mu_dtype="float32",
      weight_decay=1e-4,
      clip_norm=1.0,
      rules=(),
    )
    | fields
  )


def make_params(seed=0):
  """A tree with the names and kinds of the model's parameters."""
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  def tower():
    return {
      "encoder": {
        "blocks": {
          "mlp": {"up": {"kernel": normal(2, 33, 40), "bias": normal(2, 40)}},
          "mlp_norm": {"scale": normal(2, 33), "bias": normal(2, 33)},
        }
      },
      "position_embedding": normal(6, 33),
    }

  return {
    "image": tower(),
    "text": tower() | {"token_embedding": {"embedding": normal(50, 33)}},
    "logit_scale": normal(),
    "logit_bias": normal(),
  }


def gradients(step):
  return make_params(seed=100 + step)


def train(transformation, params, steps=STEPS):
  """Returns the parameters after each step, and the last state."""
  state, trajectory = transformation.init(params), []
  update = jax.jit(transformation.update)
  for step in range(steps):
    updates, state = update(gradients(step), state, params)
    params = optax.apply_updates(params, updates)
    trajectory.append(params)
  return trajectory, state


def flat(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def changed(before, after):
  before, after = flat(before), flat(after)
  return {path for path in before if not np.all(before[path] == after[path])}
