"""Adam, Adafactor, Lion, weight decay and clipping against references."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from optimizer_cases import (
  changed,
  flat,
  gradients,
  make_config,
  make_params,
  STEPS,
  train,
)
import pytest

from big_siglip.errors import UserError
from big_siglip.optimizer import make_optimizer, scale_by_adafactor


@pytest.mark.parametrize("peak", [1e-3, 3e-4])
def test_weight_decay_has_the_papers_meaning(peak):
  config = make_config(learning_rate=peak, weight_decay=1e-4, clip_norm=0.0)
  params = make_params()
  transformation, schedule = make_optimizer(config, params, total_steps=STEPS)
  kernels = jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == "kernel", params
  )
  # 0.1 at the peak of 1e-3: independent of the peak, 1e-4 a step.
  reference = optax.adamw(
    schedule, b1=0.9, b2=0.95, weight_decay=1e-4 / peak, mask=kernels
  )
  got, _ = train(transformation, params)
  expected, _ = train(reference, params)
  for step in range(STEPS):
    for path, value in flat(expected[step]).items():
      np.testing.assert_allclose(
        flat(got[step])[path], value, rtol=1e-6, atol=1e-7
      )


def test_decay_alone_shrinks_kernels_by_the_schedule_and_nothing_else():
  config = make_config(weight_decay=0.01, schedule="linear", b1=0.0)
  params = make_params()
  transformation, schedule = make_optimizer(config, params, total_steps=STEPS)
  state, zeros = transformation.init(params), optax.tree.zeros_like(params)
  start, factor = params, 1.0

  @jax.jit
  def step_on(params, state):
    updates, state = transformation.update(zeros, state, params)
    return optax.apply_updates(params, updates), state

  for step in range(STEPS):
    params, state = step_on(params, state)
    factor *= 1 - 0.01 * float(schedule(step)) / 1e-3
  kernels = {path for path in flat(params) if path.endswith("/kernel")}
  assert len(kernels) == 2
  assert factor < 0.97
  assert changed(start, params) == kernels
  for path in kernels:
    np.testing.assert_allclose(
      flat(params)[path], factor * flat(start)[path], rtol=1e-5
    )


def numpy_adafactor_direction(gradient, state, step, mu_dtype):
  """One step of the Adafactor of ScalingViT, b1 0.9 and b2 0.95."""
  decay = min(0.95, 1 - (step + 1.0) ** -0.8)
  squared = gradient.astype(np.float64) ** 2 + 1e-30
  # The two largest axes of the shapes used here are always the last two.
  if squared.ndim > 1 and min(squared.shape[-2:]) >= 32:
    for name, axis in (("row", -1), ("column", -2)):
      mean = squared.mean(axis, keepdims=True)
      state[name] = decay * state.get(name, 0.0) + (1 - decay) * mean
    row, column = state["row"], state["column"]
    second = row * column / row.mean(axis=-2, keepdims=True)
  else:
    state["full"] = decay * state.get("full", 0.0) + (1 - decay) * squared
    second = state["full"]
  b1 = float(mu_dtype(0.9))
  old = state.get("momentum", np.zeros_like(gradient))
  momentum = (b1 * old.astype(np.float64)).astype(mu_dtype).astype(np.float64)
  momentum += 0.1 * gradient / np.sqrt(second)
  state["momentum"] = momentum.astype(mu_dtype)
  return momentum


@pytest.mark.parametrize(
  ("mu_dtype", "reference_dtype", "tolerance"),
  [("float32", np.float32, 1e-5), ("bfloat16", ml_dtypes.bfloat16, 2e-3)],
)
def test_adafactor_equals_numpy(mu_dtype, reference_dtype, tolerance):
  config = make_config(
    name="adafactor",
    learning_rate=0.01,
    schedule="constant",
    warmup_steps=0,
    clip_norm=0.0,
    weight_decay=0.0,
    mu_dtype=mu_dtype,
  )
  start = make_params()
  # 1 - t**-0.8 passes 0.95 at step 43: run beyond the cap.
  steps = 50
  transformation, _ = make_optimizer(config, start, total_steps=steps)
  got, state = train(transformation, start, steps=steps)
  factored = 0
  for path, param in flat(start).items():
    reference, memory = param.astype(np.float64), {}
    for step in range(steps):
      reference -= 0.01 * numpy_adafactor_direction(
        flat(gradients(step))[path], memory, step, reference_dtype
      )
    factored += "row" in memory
    np.testing.assert_allclose(
      flat(got[-1])[path], reference, atol=tolerance, rtol=0, err_msg=path
    )
  assert factored == 3  # Two MLP kernels and the token embedding.
  # Factored: no array of the parameter's size but the momentum.
  sizes = [
    (leaf.size, leaf.dtype)
    for path, leaf in flat(state).items()
    if path.endswith("image/encoder/blocks/mlp/up/kernel")
  ]
  assert sorted(size for size, _ in sizes) == [1, 66, 80, 2640]
  assert dict(sizes)[2640] == reference_dtype


def test_lion_equals_numpy():
  config = make_config(
    name="lion", b2=0.99, weight_decay=1e-3, clip_norm=0.0, learning_rate=1e-2
  )
  start = make_params()
  transformation, schedule = make_optimizer(config, start, total_steps=STEPS)
  got, _ = train(transformation, start)
  for path, param in flat(start).items():
    reference, momentum = param, np.zeros_like(param)
    for step in range(STEPS):
      gradient = flat(gradients(step))[path]
      direction = np.sign(0.9 * momentum + 0.1 * gradient)
      momentum = 0.99 * momentum + 0.01 * gradient
      rate = float(schedule(step))
      decay = 1e-3 * rate / 1e-2 if path.endswith("kernel") else 0.0
      reference = reference - rate * direction - decay * reference
    np.testing.assert_allclose(
      flat(got[-1])[path], reference, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_momentum_is_bfloat16_on_request(name):
  params = make_params()
  for mu_dtype in ("float32", "bfloat16"):
    config = make_config(name=name, mu_dtype=mu_dtype)
    transformation, _ = make_optimizer(config, params, total_steps=STEPS)
    _, state = train(transformation, params, steps=1)
    moments = [leaf for path, leaf in flat(state).items() if "/mu/" in path]
    assert len(moments) == len(flat(params))
    assert {str(moment.dtype) for moment in moments} == {mu_dtype}


def test_clipping_is_by_the_global_norm():
  params, gradient = make_params(), gradients(0)
  norm = float(optax.tree.norm(gradient))

  def momentum(clip_norm):
    """A tenth of the clipped gradient, after one step of Adam."""
    config = make_config(clip_norm=clip_norm)
    transformation, _ = make_optimizer(config, params, total_steps=STEPS)
    _, state = train(transformation, params, steps=1)
    return {
      path.split("/mu/")[1]: leaf
      for path, leaf in flat(state).items()
      if "/mu/" in path
    }

  for clip_norm, factor in ((0.0, 1), (2 * norm, 1), (norm / 2, 0.5)):
    got = momentum(clip_norm)
    for path, value in flat(gradient).items():
      np.testing.assert_allclose(got[path], 0.1 * factor * value, rtol=1e-5)


def test_unknown_optimizer_is_an_error_that_lists_the_known():
  with pytest.raises(UserError, match="'adam': must be one of adamw, ada"):
    make_optimizer(make_config(name="adam"), make_params(), total_steps=STEPS)


@pytest.mark.parametrize("depth", [3, 66])
def test_adafactor_treats_stacked_blocks_as_single_ones(depth):
  """66 blocks are more than a norm factors by, and than a head has numbers."""
  shapes = {
    "attention_norm/scale": (64,),
    "attention/query/bias": (8, 64),
    "attention/query/kernel": (512, 8, 64),
    "mlp/up/bias": (128,),
    "mlp/up/kernel": (32, 48),
  }
  adafactor = scale_by_adafactor(b1=0.9, b2=0.95, mu_dtype="float32")
  rng = np.random.default_rng(0)
  draw = {
    name: rng.normal(size=(2, depth, *shape)).astype(np.float32)
    for name, shape in shapes.items()
  }
  stacked = {"image/encoder/blocks/" + k: x for k, x in draw.items()}
  single = [
    {"image/encoder/block_0/" + k: x[:, i] for k, x in draw.items()}
    for i in range(depth)
  ]
  step = jax.jit(adafactor.update)

  def run(gradients):
    params = {k: jnp.asarray(x[0]) for k, x in gradients.items()}
    state = adafactor.init(params)
    for number in range(2):
      found, state = step(
        {k: jnp.asarray(x[number]) for k, x in gradients.items()}, state, params
      )
    return found

  found, expected = run(stacked), [run(block) for block in single]
  for name in shapes:
    blocks = [block["image/encoder/block_0/" + name] for block in expected]
    np.testing.assert_allclose(
      found["image/encoder/blocks/" + name],
      np.stack(blocks),
      rtol=1e-5,
      atol=1e-7,  # Where two steps cancel.
    )


def test_blocks_that_cannot_be_factored_one_by_one_are_refused():
  params = {"image/encoder/blocks/mlp/up/kernel": jnp.zeros((97, 64, 48))}
  adafactor = scale_by_adafactor(b1=0.9, b2=0.95, mu_dtype="float32")
  with pytest.raises(UserError, match="set config.model.scan=False"):
    adafactor.init(params)
