"""The decoder and self-distillation together, in steps without weight."""

import functools

import distillation_cases as cases
from etils import epath
import jax
import numpy as np
import pytest
import runs

from big_siglip import build, sharding
from big_siglip.checkpoint import Checkpoints
from big_siglip.trained import teachers
from configs import terms

WORDS, SELF = "words", "self"


def _config():
  config = runs.config(
    optimizer__warmup_steps=0,
    model__image__patch_size=4,
    mesh__data=1,
    nonfinite="skip",
  ).unlock()
  config.terms = {
    WORDS: terms.captioning(weight=0.0, chunk_size=40),
    SELF: cases.section(weight=0.0, **cases.OFF),
  }
  return config


@functools.cache
def _program(kind):
  config = _config()
  if kind == "plain":
    config.terms = {}
  if kind == "weightless and alone":
    config.terms[SELF].slice_examples = 4
  mesh = build.mesh(config, jax.devices()[:1])
  rng = np.random.default_rng(0)
  batch = {
    name: rng.integers(0, 250, (16, *field.shape)).astype(field.dtype)
    for name, field in build.step_fields(config).items()
  }
  batch["faults"][:] = 0
  return build.program(config, mesh), sharding.to_global(mesh, batch)


@functools.cache
def _history(kind):
  """Returns the states from first to third step, on the host, and metrics."""
  program, batch = _program(kind)
  state = program.init()
  states = [jax.device_get(state)]
  for _ in range(3):
    state, metrics = program.step(state, batch)
    states.append(jax.device_get(state))
  return states, metrics


def _placed(state, program):
  """Returns a state as a program wants it."""
  return jax.tree.map(
    lambda x, like: jax.device_put(x, like.sharding),
    state,
    program.abstract_state,
  )


@pytest.mark.parametrize(
  "kind",
  [
    "weightless",
    pytest.param("weightless and alone", marks=pytest.mark.slow),
  ],
)
def test_with_weight_0_they_change_no_bit(kind):
  plain, weightless = _history("plain"), _history(kind)
  expected, found = (runs.flatten(h[0][-1].params) for h in (plain, weightless))
  for path, wanted in expected.items():
    np.testing.assert_array_equal(found[path], wanted, err_msg=path)
  assert {path.split("/")[0] for path in found.keys() - expected} == {
    WORDS,
    SELF,
  }
  for name in (WORDS, SELF):
    assert np.isfinite(weightless[1][f"{name}/loss"])
  assert plain[0][-1].carry is None


def test_the_teacher_is_the_students_average():
  states, _ = _history("weightless")
  first = runs.flatten(states[0].carry[SELF]["teacher"])
  students = [runs.flatten(state.params) for state in states]
  last = runs.flatten(states[-1].carry[SELF]["teacher"])
  for path, start in first.items():
    np.testing.assert_array_equal(start, students[0][path])
    expected = 0.99**3 * start + 0.01 * sum(
      0.99 ** (3 - k) * students[k][path] for k in (1, 2, 3)
    )
    np.testing.assert_allclose(last[path], expected, rtol=1e-5, atol=1e-7)
  moved = [np.abs(last[path] - start).max() for path, start in first.items()]
  assert max(moved) > 1e-5
  assert states[-1].carry[SELF]["steps"] == 3
  assert np.any(states[-1].carry[SELF]["centres"]["masked"])


def test_a_step_that_is_skipped_leaves_teacher_and_centres():
  program, batch = _program("weightless")
  states, _ = _history("weightless")
  state = _placed(states[1], program)
  bias = state.params["logit_bias"]
  broken = jax.device_put(np.float32(np.nan), bias.sharding)
  state = state.replace(params={**state.params, "logit_bias": broken})
  after, metrics = program.step(state, batch)
  assert not metrics["finite"]
  runs.assert_same(runs.flatten(after.carry), runs.flatten(states[1].carry))


def test_a_step_after_a_checkpoint_is_the_same_bit_for_bit(tmp_path):
  program, batch = _program("weightless")
  states, last = _history("weightless")
  checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
  state = _placed(states[2], program)
  checkpoints.save(state, {})
  checkpoints.wait()
  restored, _ = checkpoints.restore(program.abstract_state)
  checkpoints.close()
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  load = teachers.choose(
    "teacher",
    epath.Path(tmp_path) / "checkpoints" / "2",
    _config(),
    lambda mesh: dict(states[2].params),
  )
  params, teacher = load(mesh), states[2].carry[SELF]["teacher"]
  runs.assert_same(
    runs.flatten(params["image"]), runs.flatten(teacher["image"])
  )
  assert params["text"] is states[2].params["text"]
  after, metrics = program.step(restored, batch)
  runs.assert_same(runs.flatten(after), runs.flatten(states[3]))
  for name in (WORDS, SELF):
    loss = f"{name}/loss"
    assert float(metrics[loss]) == float(last[loss])
  assert "logits" in after.params[WORDS]
