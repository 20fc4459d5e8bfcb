"""Terms of a loss: exact in slices and on all meshes, added from outside."""

import functools
import re

import jax
import jax.numpy as jnp
import model_cases
import numpy as np
import optax
import pytest
import runs
import step_cases
import toy_term

from big_siglip import build, sharding
from big_siglip.checkpoint import Checkpoints, restore_params
from big_siglip.errors import UserError
from big_siglip.models import SigLIP
from big_siglip.objectives import make_terms, Term

SIZE = 64
# Widths that every mesh axis divides.
TOWER = {"width": 16, "num_heads": 8, "mlp_dim": 16}


def _batch(config):
  image, text = model_cases.example_inputs(config, batch=SIZE)
  return {"image": image, "text": text}


@functools.cache
def _two_steps(shape, count):
  """Returns loss and gradient of a second step, and what it carries on."""
  axes = dict(zip(sharding.AXES, shape, strict=True))
  config = runs.config(batch_size=SIZE, loss__name="ring_sigmoid")
  config.mesh.update(axes)
  devices = jax.devices()[: int(np.prod(shape))]
  mesh = sharding.make_mesh(**axes, devices=devices)
  model = SigLIP(
    model_cases.model_config(TOWER, TOWER), sharding.batch_sharding(mesh)
  )
  terms = (*make_terms(config, mesh), toy_term.make(lambda step: 0.5 + step))
  batch = _batch(model.config)
  state = step_cases.first_state(model, terms, batch)
  # At the second step teacher and student are no longer the same.
  state = state.replace(
    step=jnp.int32(1),
    params=jax.tree.map(
      lambda x: np.float32(1.1) * x, jax.device_get(state.params)
    ),
  )
  metrics, gradient, after = step_cases.take(
    state, batch, model, terms, mesh, count
  )
  return metrics, gradient, runs.flatten(after.carry)


@step_cases.shapes_and_counts(8)
def test_slices_and_meshes_change_neither_loss_nor_gradient(shape, count):
  metrics, gradient, carry = _two_steps(shape, count)
  expected, expected_gradient, expected_carry = _two_steps((2, 2, 2), 1)
  assert metrics.keys() == expected.keys()
  for name in ("loss", "toy/loss", "contrastive/loss", "toy/visible"):
    np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-6)
  assert 0.4 < metrics["toy/visible"] < 0.6
  total = metrics["contrastive/loss"] + 1.5 * metrics["toy/loss"]
  np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)
  # Of the largest: a key's bias has no gradient but its rounding.
  largest = max(np.abs(x).max() for x in expected_gradient.values())
  for path, wanted in expected_gradient.items():
    np.testing.assert_allclose(
      gradient[path], wanted, rtol=0, atol=1e-6 * largest, err_msg=path
    )
  assert np.abs(expected_gradient["toy/kernel"]).max() > 1e-3
  for path, wanted in expected_carry.items():
    np.testing.assert_allclose(
      carry[path], wanted, rtol=1e-5, atol=1e-6, err_msg=path
    )


def test_the_first_pass_leaves_out_what_belongs_to_single_examples():
  """A product with a vocabulary is computed in the second pass alone."""
  vocabulary = 1234

  def each(part):
    logits = part.seen.text_tokens @ part.params["words"]["kernel"]
    return -jax.nn.log_softmax(logits)[..., 0].mean(axis=1), {}

  def init(key, part):
    width = part.seen.text_tokens.shape[-1]
    return {"kernel": jax.random.normal(key, (width, vocabulary))}

  config = runs.config(batch_size=SIZE, microbatch=16, mesh__data=1)
  mesh = build.mesh(config, jax.devices()[:1])
  words = Term("words", each=each, init=init)
  program = build.program(config, mesh, (*make_terms(config, mesh), words))
  lowered = program.step.lower(
    program.abstract_state, build.abstract_batch(config, mesh)
  )
  text = lowered.compile().as_text()
  tokens = 16 * config.model.text.length  # Of a slice.
  products = re.findall(rf"= f32\[{tokens},{vocabulary}\]\S* dot\(", text)
  assert len(products) == 1, products


def _trained(terms_of):
  config = runs.config(optimizer__warmup_steps=0, mesh__data=8)
  mesh = build.mesh(config)
  program = build.program(config, mesh, terms_of(config, mesh))
  state = program.init()
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (16, 16, 16, 3), np.uint8),
    "text": rng.integers(0, 259, (16, 16), np.int32),
    "faults": np.zeros((16, 6), np.int32),
  }
  for _ in range(3):
    state, metrics = program.step(state, sharding.to_global(mesh, batch))
  return state, metrics


@functools.cache
def _weightless():
  weight = optax.constant_schedule(0.0)
  # The one line that adds a term.
  return _trained(lambda *args: (*make_terms(*args), toy_term.make(weight)))


def test_a_term_from_outside_with_weight_0_changes_no_bit():
  plain, _ = _trained(make_terms)
  weightless, metrics = _weightless()
  expected, found = runs.flatten(plain.params), runs.flatten(weightless.params)
  for path, wanted in expected.items():
    np.testing.assert_array_equal(found[path], wanted, err_msg=path)
  assert found.keys() - expected.keys() == {"toy/kernel"}
  assert plain.carry is None and np.isfinite(metrics["toy/loss"])
  assert np.any(np.asarray(weightless.carry["toy"]["centre"]) != 0)


def test_a_checkpoint_keeps_what_a_term_has_and_models_load_without(tmp_path):
  state, _ = _weightless()
  checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
  checkpoints.save(state, {})
  checkpoints.wait()
  restored, _ = checkpoints.restore(state)
  checkpoints.close()
  runs.assert_same(runs.flatten(restored), runs.flatten(state))
  folder = tmp_path / "checkpoints" / "3"
  model = {k: x for k, x in state.params.items() if k != "toy"}
  found = restore_params(folder, model, beside=["toy"])
  runs.assert_same(runs.flatten(found), runs.flatten(model))
  with pytest.raises(UserError, match="of another model"):
    restore_params(folder, model)
  model["image"] = dict(model["image"])
  del model["image"]["encoder"]
  with pytest.raises(UserError, match="other parameters: image/encoder"):
    restore_params(folder, model, beside=["toy"])


def test_without_a_loss_the_terms_alone_are_learned():
  terms = toy_term.make(optax.constant_schedule(2.0))
  with pytest.raises(UserError, match="name='none': leaves nothing to learn"):
    runs.config(loss__name="none")
  config = runs.config()
  config.loss.name = "none"
  assert make_terms(config, None) == ()
  state, metrics = _trained(lambda *_: (terms,))
  assert metrics["loss"] == 2 * metrics["toy/loss"] != 0
  # What the term does not look at keeps its first value but for the decay.
  assert metrics["logit_bias"] == config.model.logit_bias_init
  assert "positive_logit" not in metrics and int(state.step) == 3


def test_a_kind_that_is_not_known_is_named():
  config = runs.config().unlock()
  config.terms = {"mine": {"kind": "magic"}}
  with pytest.raises(UserError, match="config.terms.mine.kind='magic': is not"):
    make_terms(config, None)
