"""A parameter that joins late is moved as if it had begun with the others."""

import jax
import numpy as np
import optax
from optimizer_cases import flat, gradients, make_config, make_params, train
import pytest

from big_siglip.optimizer import make_optimizer

LATE = "text/token_embedding/embedding"
EARLY = 5  # Steps that the others have taken before.
CONSTANT = dict(schedule="constant", warmup_steps=0, clip_norm=0.0)


def _leaf(tree, path=LATE):
  return flat(tree)[path]


def _join(state):
  """Returns a state after `EARLY` steps in which `LATE` is new."""

  def reset(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return np.zeros_like(leaf) if name.endswith(f"/{LATE}") else leaf

  return jax.tree_util.tree_map_with_path(reset, state)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion"])
def test_it_moves_as_from_the_start_and_the_others_go_on(name):
  config = make_config(name=name, **CONSTANT)
  params = make_params()
  plain, _ = make_optimizer(config, params, total_steps=50)
  late, _ = make_optimizer(config, params, total_steps=50, began={LATE: EARLY})
  _, state = train(plain, params, steps=EARLY)
  joined = _join(state)
  got, expected = (params, joined), (params, plain.init(params))
  others = (params, state)
  for step in range(4):
    moved = []
    for transformation, (p, s) in (
      (late, got),
      (plain, expected),
      (plain, others),
    ):
      updates, s = jax.jit(transformation.update)(gradients(step), s, p)
      moved.append((optax.apply_updates(p, updates), s))
    got, expected, others = moved
    np.testing.assert_allclose(
      _leaf(got[0]), _leaf(expected[0]), rtol=1e-6, atol=1e-7
    )
    for path, leaf in flat(others[0]).items():
      if path != LATE:
        np.testing.assert_array_equal(flat(got[0])[path], leaf, err_msg=path)
  # The layout is the plain one's, and so are the counts.
  assert jax.tree.structure(got[1]) == jax.tree.structure(others[1])
  for path, leaf in flat(others[1]).items():
    if not path.endswith(f"/{LATE}"):
      np.testing.assert_array_equal(flat(got[1])[path], leaf, err_msg=path)


@pytest.mark.parametrize(("b2", "factor"), [(0.95, 0.45), (0.999, 3.2)])
def test_without_its_own_count_the_first_update_would_be_wrong(b2, factor):
  config = make_config(b2=b2, weight_decay=0.0, **CONSTANT)
  params = make_params()
  plain, _ = make_optimizer(config, params, total_steps=50)
  late, _ = make_optimizer(config, params, total_steps=50, began={LATE: 20_000})

  def old(path, leaf):
    return (
      leaf + 20_000 if path[-1] == jax.tree_util.GetAttrKey("count") else leaf
    )

  state = jax.tree_util.tree_map_with_path(old, plain.init(params))
  right, wrong = (
    _leaf(transformation.update(gradients(0), state, params)[0])
    for transformation in (late, plain)
  )
  np.testing.assert_allclose(np.abs(right), 1e-3, rtol=1e-4)
  np.testing.assert_allclose(wrong / right, factor, rtol=0.02)


def test_two_may_join_at_different_times():
  config = make_config(**CONSTANT)
  params = make_params()
  began = {LATE: 3, "logit_bias": 4}
  late, _ = make_optimizer(config, params, total_steps=50, began=began)
  plain, _ = make_optimizer(config, params, total_steps=50)
  _, state = train(plain, params, steps=4)
  update = jax.jit(late.update)
  updates, _ = update(gradients(0), state, params)
  for path, count in {**began, "logit_scale": 0}.items():
    only, _ = make_optimizer(
      config, params, total_steps=50, began={path: count} if count else None
    )
    expected, _ = only.update(gradients(0), state, params)
    np.testing.assert_allclose(
      _leaf(updates, path), _leaf(expected, path), rtol=1e-6
    )
