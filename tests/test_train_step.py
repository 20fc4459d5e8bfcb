"""One step, against the same step written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs

from big_siglip import build, losses, sharding
from big_siglip.models import SigLIP
from big_siglip.models.towers import Seen
from big_siglip.objectives import Term
from big_siglip.train_step import init_state, train_step, TrainState


class Towers:
  """A model of one matrix for each tower, enough to step."""

  def init(self, rng, image, text):
    keys = jax.random.split(rng)
    return {
      "params": {
        "image": jax.random.normal(keys[0], (image.shape[1], 4)),
        "text": jax.random.normal(keys[1], (text.shape[1], 4)),
        "logit_scale": jnp.log(10.0),
        "logit_bias": jnp.float32(-2.0),
      }
    }

  def apply(self, variables, image, text):
    params = variables["params"]
    x, y = image @ params["image"], text @ params["text"]
    return (
      x / jnp.linalg.norm(x, axis=-1, keepdims=True),
      y / jnp.linalg.norm(y, axis=-1, keepdims=True),
      params["logit_scale"],
      params["logit_bias"],
    )

  def look(self, params, batch):
    image, text, *_ = self.apply(
      {"params": params}, batch["image"], batch["text"]
    )
    return Seen(image, text)


def _sigmoid(params, embeddings, batch):
  del batch
  scale, bias = params["logit_scale"], params["logit_bias"]
  return losses.sigmoid_loss(*embeddings, scale, bias), {}


OPTIMIZER = optax.adam(0.1)


def _batch(seed, size=8):
  rng = np.random.default_rng(seed)
  return {
    "image": jnp.asarray(rng.normal(size=(size, 6)), jnp.float32),
    "text": jnp.asarray(rng.normal(size=(size, 5)), jnp.float32),
  }


def _step(**changes):
  options = {
    "look": Towers().look,
    "terms": (Term("contrastive", pairs=_sigmoid),),
    "optimizer": OPTIMIZER,
    "schedule": optax.constant_schedule(0.1),
    **changes,
  }
  return jax.jit(functools.partial(train_step, **options))


def _init():
  return init_state(
    jax.random.key(0),
    _batch(0),
    model=Towers(),
    terms=(),
    optimizer=OPTIMIZER,
  )


def test_three_steps_equal_a_plain_optax_loop():
  state, step = _init(), _step()
  params, opt_state = state.params, state.opt_state

  def loss_of(params, batch):
    x, y, scale, bias = Towers().apply({"params": params}, *batch)
    logits = jnp.exp(scale) * x @ y.T + bias
    signs = 2 * jnp.eye(len(x)) - 1
    return -jnp.sum(jax.nn.log_sigmoid(signs * logits)) / len(x)

  for number in range(3):
    batch = _batch(number)
    loss, grads = jax.value_and_grad(loss_of)(
      params, (batch["image"], batch["text"])
    )
    state, metrics = step(state, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(
      metrics["grad_norm"], optax.global_norm(grads), rtol=1e-5
    )
    updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
    np.testing.assert_allclose(
      metrics["update_norm"], optax.global_norm(updates), rtol=1e-4
    )
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(
      metrics["param_norm"], optax.global_norm(params), rtol=1e-5
    )

  assert int(state.step) == 3
  for got, expected in zip(
    jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True
  ):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_metrics_are_of_the_parameters_before_the_step():
  state = _init()
  after, metrics = _step()(state, _batch(0))
  np.testing.assert_allclose(metrics["logit_scale"], 10.0, rtol=1e-6)
  assert float(metrics["logit_bias"]) == -2.0
  assert float(after.params["logit_bias"]) != -2.0
  assert float(metrics["learning_rate"]) == np.float32(0.1)


@pytest.mark.parametrize("spoiled", ["image", "text"])
def test_a_step_that_is_not_finite_can_leave_everything_as_it_was(spoiled):
  state, _ = _step()(_init(), _batch(0))
  batch = _batch(1)
  batch[spoiled] = batch[spoiled].at[2, 3].set(jnp.nan)

  after, metrics = _step(skip_nonfinite=True)(state, batch)

  assert not metrics["finite"]
  assert int(after.step) == int(state.step) + 1
  runs.assert_same(
    runs.flatten((after.params, after.opt_state)),
    runs.flatten((state.params, state.opt_state)),
  )
  spread, _ = _step()(state, batch)
  assert not np.isfinite(spread.params["logit_bias"])


def test_a_gradient_alone_that_is_not_finite_counts_too():
  def pairs(params, embeddings, batch):
    del batch  # The root is 0, with slope inf * 0.
    return jnp.sqrt(params["logit_bias"] * 0) + embeddings[0].sum(), {}

  _, metrics = _step(terms=[Term("t", pairs=pairs)])(_init(), _batch(0))
  assert np.isfinite(metrics["loss"])
  assert not metrics["finite"]


def test_skipping_changes_nothing_where_all_is_finite():
  plain, _ = _step()(_init(), _batch(0))
  skipping, metrics = _step(skip_nonfinite=True)(_init(), _batch(0))
  assert metrics["finite"]
  runs.assert_same(runs.flatten(skipping), runs.flatten(plain))


def test_frozen_parameters_do_not_move_and_have_no_gradient():
  state = _init()
  frozen = {key: key == "image" for key in state.params}
  sgd = optax.sgd(1.0)
  state = TrainState(state.step, state.params, sgd.init(state.params))
  after, metrics = _step(frozen=frozen, optimizer=sgd)(state, _batch(0))
  np.testing.assert_array_equal(after.params["image"], state.params["image"])
  assert np.any(after.params["text"] != state.params["text"])
  # With steps of the gradient itself, the norms of both are one.
  np.testing.assert_allclose(
    metrics["grad_norm"], metrics["update_norm"], rtol=1e-6
  )


def test_a_frozen_tower_has_no_backward_pass():
  """Counted in the program: a locked tower costs its forward pass alone."""
  batch = {
    "image": jax.ShapeDtypeStruct((16, 16, 16, 3), np.uint8),
    "text": jax.ShapeDtypeStruct((16, 16), np.int32),
    "faults": jax.ShapeDtypeStruct((16, 6), np.int32),
  }
  config = runs.config(loss__name="sigmoid")

  def cost(rules):
    config.optimizer.rules = rules
    program = build.program(config, build.mesh(config))
    lowered = program.step.lower(program.abstract_state, batch)
    return lowered.cost_analysis()["flops"]

  def forward(params, image):
    return SigLIP(config.model).apply({"params": params}, image, None)[0]

  program = build.program(config, build.mesh(config))
  params = program.abstract_state.params
  lowered = jax.jit(forward).lower(params, batch["image"])
  alone = lowered.cost_analysis()["flops"]
  saved = cost(()) - cost((("image/.*", {"freeze": True}),))
  # Twice the forward pass, but for what leads to pixels alone.
  assert saved > 1.5 * alone


def test_the_program_donates_its_state_and_trains_like_its_parts():
  config = runs.config(loss__name="sigmoid")
  config.optimizer.warmup_steps = 0
  mesh = build.mesh(config)
  program = build.program(config, mesh)
  rng = np.random.default_rng(0)
  host = {
    "image": rng.integers(0, 256, (16, 16, 16, 3), np.uint8),
    "text": rng.integers(0, 259, (16, 16), np.int32),
    "faults": np.eye(16, 6, dtype=np.int32),
  }
  # Of its own: what NumPy looks at cannot be donated.
  params = jax.device_get(program.init().params)
  before = program.init()
  after, metrics = program.step(before, sharding.to_global(mesh, host))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
  embedded = jax.jit(SigLIP(config.model).apply)(
    {"params": params}, host["image"], host["text"]
  )
  expected = losses.sigmoid_loss(*embedded)
  np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
  np.testing.assert_array_equal(metrics["faults"], np.ones(6))
  assert jax.tree.map(lambda x: x.sharding, after) == jax.tree.map(
    lambda x: x.sharding, program.abstract_state
  )
