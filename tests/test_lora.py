"""Adapted kernels train alone, and are merged without a trace."""

import jax
import jax.numpy as jnp
import model_cases
import numpy as np
import pytest
import runs

from big_siglip import build, sharding
from big_siglip.evaluators import make_embedders
from big_siglip.models import make_model, merged, SigLIP

LORA = {"rank": 4, "alpha": 8.0, "targets": ".*/(attention/.*|mlp/up)/kernel"}


def _model(scan=True, **lora):
  config = model_cases.model_config(
    dict(depth=2), dict(depth=2), scan=scan, lora={**LORA, **lora}
  )
  image, text = model_cases.example_inputs(config)
  model = make_model(config)
  return config, model, (image, text)


@pytest.mark.parametrize(
  "scan", [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_at_the_start_nothing_is_changed(scan):
  config, model, inputs = _model(scan)
  params = jax.jit(model.init)(jax.random.key(0), *inputs)["params"]
  plain = jax.jit(SigLIP(config).init)(jax.random.key(0), *inputs)
  for got, wanted in zip(
    model.apply({"params": params}, *inputs),
    SigLIP(config).apply(plain, *inputs),
    strict=True,
  ):
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("scan", [True, False])
def test_merged_kernels_are_the_sums_written_out(scan):
  config, model, inputs = _model(scan)
  params = jax.jit(model.init)(jax.random.key(0), *inputs)["params"]
  params["lora"] = jax.tree.map(
    lambda x: jnp.asarray(
      np.random.default_rng(x.size).normal(size=x.shape), jnp.float32
    ),
    params["lora"],
  )
  result = runs.flatten(merged(params, config))
  before = runs.flatten({k: v for k, v in params.items() if k != "lora"})
  changed = set()
  for path, array in before.items():
    pair = params["lora"].get(path.replace("/", "."))
    if pair is None:
      np.testing.assert_array_equal(result[path], array)
      continue
    changed.add(path)
    sum_ = np.einsum("...ir,...ro->...io", pair["a"], pair["b"])
    expected = array + 8.0 / 4 * sum_.reshape(array.shape)
    np.testing.assert_allclose(result[path], expected, rtol=1e-5, atol=1e-5)
  attention = 8 if scan else 16
  assert len(changed) == attention + attention // 4 + 5, "and of the pool"
  for got, wanted in zip(
    model.apply({"params": params}, *inputs),
    SigLIP(config).apply({"params": merged(params, config)}, *inputs),
    strict=True,
  ):
    np.testing.assert_array_equal(got, wanted)


def test_only_the_small_matrices_are_trained():
  config = runs.config(optimizer__warmup_steps=0)
  config.model.lora = LORA
  config.optimizer.rules = (("(image|text)/.*", {"freeze": True}),)
  mesh = build.mesh(config)
  program = build.program(config, mesh)
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (16, 16, 16, 3), np.uint8),
    "text": rng.integers(0, 259, (16, 16), np.int32),
    "faults": np.zeros((16, 6), np.int32),
  }
  before = runs.flatten(program.init().params)
  state = program.init()
  for _ in range(2):  # B is zero at first, and so is the gradient of A.
    state, metrics = program.step(state, sharding.to_global(mesh, batch))
  assert metrics["finite"]
  after = runs.flatten(state.params)
  for path, array in before.items():
    moved = np.any(after[path] != array)
    assert moved == (path.startswith(("lora/", "logit_"))), path
  moments = sum(x.size for x in jax.tree.leaves(state.opt_state))
  small = sum(x.size for p, x in after.items() if p.startswith("lora/"))
  assert moments < 2 * small + 100, "no optimizer state for frozen kernels"


def test_a_target_that_matches_nothing_is_named():
  _, model, inputs = _model(targets="attention")
  with pytest.raises(ValueError, match="targets='attention': matches no"):
    model.init(jax.random.key(0), *inputs)


def test_an_adapted_model_has_the_whole_face_of_a_plain_one():
  """Probes ask for features, and terms of a loss look."""
  config, model, (image, text) = _model()
  params = jax.jit(model.init)(jax.random.key(0), image, text)["params"]
  params["lora"] = jax.tree.map(lambda x: x + 0.1, params["lora"])
  plain = merged(params, config)
  devices = sharding.make_mesh(devices=jax.devices()[:1])
  features, expected = (
    make_embedders(each, devices).features(weights, image, {})[0]
    for each, weights in ((model, params), (SigLIP(config), plain))
  )
  np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)
  batch = {"image": image, "text": text}
  jax.tree.map(
    np.testing.assert_array_equal,
    model.look(params, batch),
    SigLIP(config).look(plain, batch),
  )
