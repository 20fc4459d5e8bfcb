"""The moving average of the parameters: kept, saved, evaluated, loaded."""

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest
import runs

from big_siglip import build, ema, loop, sharding
from big_siglip.checkpoint import Checkpoints
from big_siglip.trained import saved

DECAY = 0.9


def _config(**changes):
  config = runs.config(total_steps=4, checkpoint__every=2, **changes)
  with config.unlocked():
    config.ema = ConfigDict({"decay": DECAY})
  return config


def _batch(config, mesh, seed=0):
  rng = np.random.default_rng(seed)
  batch = {
    name: rng.integers(0, 250, x.shape).astype(x.dtype)
    for name, x in build.abstract_batch(config, mesh).items()
  }
  batch["faults"] = np.zeros_like(batch["faults"])
  return sharding.to_global(mesh, batch)


def test_each_step_takes_its_share_and_a_skipped_one_none():
  config = _config(nonfinite="skip", optimizer__schedule="constant")
  config.optimizer.rules = (("image/.*", {"freeze": True}),)
  mesh = build.mesh(config)
  program = build.program(config, mesh)
  state = program.init()
  start = runs.flatten(state.params)
  runs.assert_same(runs.flatten(state.ema), start)
  expected = start
  for seed in range(3):
    state, _ = program.step(state, _batch(config, mesh, seed))
    params = runs.flatten(state.params)
    expected = {
      path: DECAY * old + (1 - DECAY) * params[path]
      for path, old in expected.items()
    }
  average = runs.flatten(state.ema)
  for path, value in expected.items():
    if path.startswith("image/"):
      np.testing.assert_array_equal(average[path], start[path], err_msg=path)
    np.testing.assert_allclose(average[path], value, rtol=1e-5, atol=1e-7)
  assert not np.array_equal(
    average["text/head/kernel"], params["text/head/kernel"]
  )
  bias = jax.device_put(np.float32(np.nan), state.params["logit_bias"].sharding)
  state = state.replace(params={**state.params, "logit_bias": bias})
  state, metrics = program.step(state, _batch(config, mesh))
  assert not metrics["finite"]
  runs.assert_same(runs.flatten(state.ema), average)


def test_an_average_of_what_stands_still_stands_still():
  params = {"a": np.random.default_rng(0).normal(size=999).astype(np.float32)}
  average = ema.start(params)
  for _ in range(20):
    average = jax.jit(ema.update, static_argnums=2)(average, params, 0.9999)
  np.testing.assert_array_equal(average["a"], params["a"])


def test_a_run_evaluates_and_leaves_its_average(tmp_path, monkeypatch, caplog):
  seen = []

  class Spy:
    metrics = {"accuracy": 0.5}

  def evaluate(params):
    seen.append(runs.flatten(params))
    return Spy

  monkeypatch.setattr(build, "evaluators", lambda *_: {"test": evaluate})
  config = _config(evals__test__every=4)
  loop.train(config, str(tmp_path))
  program = build.program(config, build.mesh(config))
  checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
  state, _ = checkpoints.restore(program.abstract_state)
  checkpoints.close()
  average = runs.flatten(state.ema)
  runs.assert_same(seen[-1], average)
  _, params = saved.load(str(tmp_path), build.mesh(config))
  runs.assert_same(runs.flatten(params), average)
  assert "checkpoints/4: the weights are their moving average" in caplog.text
  with pytest.raises(AssertionError):
    runs.assert_same(runs.flatten(state.params), average)
