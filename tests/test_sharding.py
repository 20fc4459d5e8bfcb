"""Where arrays lie makes no difference to what is trained."""

import re

import jax
import numpy as np
import pytest
import runs

from big_siglip import build, sharding
from big_siglip.errors import UserError
from configs import terms

# Adam divides by the gradient's root mean square, so that rounding moves a
# parameter whose gradient is next to zero: by 1 % of a step of 1e-3.
ATOL = 1e-5
MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)]
# Eight heads and widths of 64 divide by every mesh axis; 36 and 3 by none.
DIVISIBLE = {
  f"model__{tower}__{field}": value
  for tower in ("image", "text")
  for field, value in (("width", 64), ("num_heads", 8), ("mlp_dim", 64))
}
INDIVISIBLE = {
  f"model__{tower}__{field}": value
  for tower in ("image", "text")
  for field, value in (("width", 36), ("num_heads", 3), ("mlp_dim", 54))
}


@pytest.mark.parametrize(
  ("asked", "got"),
  [
    ((-1, 1, 1), (8, 1, 1)),
    ((-1, 2, 2), (2, 2, 2)),
    ((2, -1, 2), (2, 2, 2)),
    ((1, 4, -1), (1, 4, 2)),
    ((8, 1, 1), (8, 1, 1)),
  ],
)
def test_one_axis_takes_the_rest(asked, got):
  assert sharding.mesh_shape(*asked, 8) == got


@pytest.mark.parametrize(
  "asked",
  [(-1, -1, 1), (3, 1, 1), (-1, 3, 1), (0, 1, 1), (-1, 0, 1), (-2, -4, 1)]
  + [(16, 1, 1), (-1, 16, 1), (-8, -1, 1)],
)
def test_axes_that_do_not_cover_the_devices_are_an_error(asked):
  with pytest.raises(UserError, match="the 8 devices"):
    sharding.mesh_shape(*asked, 8)


def _paths(**changes):
  config = runs.config(**changes).unlock()
  config.terms = {"words": terms.captioning()}
  program = build.program(config, sharding.make_mesh())
  leaves = jax.tree_util.tree_leaves_with_path(program.abstract_state.params)
  return [sharding.path_string(path) for path, _ in leaves]


def test_every_kernel_and_embedding_has_its_axes_and_every_axis_a_use():
  paths = _paths(model__image__pooling="map", model__image__head=True)
  used = set()
  for path in paths:
    matches = {
      pattern
      for pattern, _ in sharding.PARAMETER_AXES
      if re.search(rf"(^|/){pattern}$", path)
    }
    used.update(matches)
    # A single vector is on every device.
    if path.endswith(("kernel", "embedding")) and "mask" not in path:
      assert matches, path
    assert len(matches) <= 1, path
  assert used == {pattern for pattern, _ in sharding.PARAMETER_AXES}


@pytest.mark.parametrize(
  ("vocabulary", "want"),
  [
    (40, (("tensor", "fsdp"), None)),
    (42, (None, ("fsdp", "tensor"))),  # 4 devices do not divide it.
    (41, (None, ("fsdp", "tensor"))),
  ],
)
def test_a_table_is_split_by_tokens_or_else_by_features(vocabulary, want):
  table = {"token_embedding": {"embedding": np.zeros((vocabulary, 8))}}
  placed = sharding.state_sharding(table, sharding.make_mesh(2, 2, 2))
  assert tuple(jax.tree.leaves(placed)[0].spec) == want


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_optimizer_state_lies_where_its_parameter_lies(name, scan):
  config = runs.config(
    **DIVISIBLE, model__scan=scan, optimizer__name=name, mesh__fsdp=2
  )
  config.mesh.tensor = 2
  state = build.program(config, build.mesh(config)).abstract_state
  params = {
    sharding.path_string(path): leaf.sharding.spec
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
  }
  assert any("tensor" in spec for spec in params.values())
  found = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
    for parameter, spec in params.items():
      if sharding.path_string(path).endswith(f"/{parameter}"):
        assert leaf.sharding.spec == spec, path
        found += 1
  assert found >= len(params)


def _batch(size=16):
  rng = np.random.default_rng(0)
  return {
    "image": rng.integers(0, 256, (size, 16, 16, 3), np.uint8),
    "text": rng.integers(0, 259, (size, 16), np.int32),
    "faults": np.zeros((size, 6), np.int32),
  }


def _train(shape, changes, steps=2):
  """Returns losses and the state after some steps on a mesh."""
  config = runs.config(**changes)
  config.optimizer.warmup_steps = 0
  config.mesh = dict(zip(sharding.AXES, shape, strict=True))
  mesh = build.mesh(config)
  program = build.program(config, mesh)
  state = program.init()
  shards = {x.sharding.is_fully_replicated for x in jax.tree.leaves(state)}
  losses = []
  for _ in range(steps):
    state, values = program.step(state, sharding.to_global(mesh, _batch()))
    losses.append(float(values["loss"]))
  return losses, runs.flatten(state.params), shards


@pytest.mark.parametrize(
  ("changes", "meshes"),
  [
    (DIVISIBLE, (MESHES[0], MESHES[2])),  # All axes split something here.
    pytest.param(DIVISIBLE, MESHES, marks=pytest.mark.slow),
    pytest.param(
      DIVISIBLE | {"loss__name": "ring_softmax"},
      (MESHES[0], MESHES[2]),
      marks=pytest.mark.slow,
    ),
    # Here the partitioner, not our own code, splits the logits.
    pytest.param(
      DIVISIBLE | {"loss__name": "sigmoid"},
      (MESHES[0], MESHES[2]),
      marks=pytest.mark.slow,
    ),
    (DIVISIBLE | {"loss__name": "softmax"}, (MESHES[0], MESHES[2])),
    (INDIVISIBLE, (MESHES[0], MESHES[2])),
  ],
)
def test_every_mesh_trains_the_same(changes, meshes):
  losses, params, shards = _train(meshes[0], changes)
  assert shards == {True}, "data parallel: nothing is split"
  for shape in meshes[1:]:
    got_losses, got, shards = _train(shape, changes)
    if changes is not INDIVISIBLE:
      assert False in shards, f"{shape}: nothing is split"
    np.testing.assert_allclose(got_losses, losses, rtol=1e-5)
    for path, array in got.items():
      if path.endswith("attention/key/bias"):
        continue  # Its gradient is zero: softmax does not see it. Adam makes
        # steps of the rounding.
      np.testing.assert_allclose(
        array, params[path], rtol=1e-5, atol=ATOL, err_msg=f"{shape} {path}"
      )
