"""The table of rules: freezing, multipliers, and patterns that go wrong."""

import jax
import jax.numpy as jnp
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
from big_siglip.optimizer import make_optimizer
from big_siglip.parameter_rules import frozen_mask

RULES = (
  (r"text/token_embedding/.*", dict(freeze=True)),
  (r"image/.*bias", {}),
  (r"image/.*", dict(learning_rate=0.1, weight_decay=0.0)),
  (r"text/.*/kernel", dict(weight_decay=3.0)),
)


def test_frozen_parameters_get_no_update_no_state_and_no_say_in_clipping():
  rules = ((r"image/.*", dict(freeze=True)),)
  params = make_params()
  frozen, _ = make_optimizer(
    make_config(rules=rules), params, total_steps=STEPS
  )
  trajectory, state = train(frozen, params)
  moved = changed(params, trajectory[-1])
  assert moved == {p for p in flat(params) if not p.startswith("image/")}
  assert not any("image" in path for path in flat(state))
  # The rest moves as if the frozen tower did not exist.
  rest = {key: value for key, value in params.items() if key != "image"}
  alone, _ = make_optimizer(make_config(), rest, total_steps=STEPS)
  state = alone.init(rest)
  for step in range(STEPS):
    gradient = {k: v for k, v in gradients(step).items() if k != "image"}
    updates, state = alone.update(gradient, state, rest)
    rest = optax.apply_updates(rest, updates)
  for path, value in flat(rest).items():
    np.testing.assert_allclose(
      flat(trajectory[-1])[path], value, rtol=1e-6, atol=1e-7
    )


def test_state_keeps_the_structure_of_the_parameters_around_frozen_ones():
  params = make_params()
  transformation, _ = make_optimizer(
    make_config(rules=RULES), params, total_steps=STEPS
  )
  adam = [
    node
    for node in jax.tree.leaves(
      transformation.init(params),
      is_leaf=lambda node: isinstance(node, optax.ScaleByAdamState),
    )
    if isinstance(node, optax.ScaleByAdamState)
  ]
  assert len(adam) == 1
  mu = adam[0].mu
  assert mu["text"]["token_embedding"]["embedding"] == optax.MaskedNode()
  assert mu["image"]["position_embedding"].shape == (6, 33)


def test_first_matching_rule_multiplies_rate_and_decay_separately():
  params = make_params()

  def one_step(rules, weight_decay):
    # Step 1 of Adam is the sign of the gradient; warm-up would make it 0.
    config = make_config(
      rules=rules, weight_decay=weight_decay, warmup_steps=0, clip_norm=0.0
    )
    transformation, _ = make_optimizer(config, params, total_steps=STEPS)
    state = transformation.init(params)
    return flat(transformation.update(gradients(0), state, params)[0])

  plain, ruled = one_step((), 0.0), one_step(RULES, 0.0)
  plain_decay = flat(
    jax.tree.map(jnp.subtract, one_step((), 0.5), one_step((), 0.0))
  )
  ruled_decay = flat(
    jax.tree.map(jnp.subtract, one_step(RULES, 0.5), one_step(RULES, 0.0))
  )

  def multipliers(path):
    if path.startswith("text/token_embedding"):
      return 0.0, 0.0
    if path.startswith("image/"):
      return (1.0, 1.0) if path.endswith("bias") else (0.1, 0.0)
    return 1.0, 3.0 if path.endswith("kernel") else 1.0

  for path, update in plain.items():
    rate, decay = multipliers(path)
    np.testing.assert_allclose(ruled[path], rate * update, rtol=1e-5)
    np.testing.assert_allclose(
      ruled_decay[path], decay * plain_decay[path], rtol=1e-3, atol=1e-6
    )
  kernel = "text/encoder/blocks/mlp/up/kernel"
  assert np.abs(plain_decay[kernel]).max() > 0.1


def test_rate_multiplier_leaves_weight_decay_alone():
  params = make_params()
  rules = ((r".*", dict(learning_rate=0.01)),)
  zeros = optax.tree.zeros_like(params)
  updates = []
  for table in ((), rules):
    config = make_config(rules=table, warmup_steps=0)
    transformation, _ = make_optimizer(config, params, total_steps=STEPS)
    state = transformation.init(params)
    updates.append(flat(transformation.update(zeros, state, params)[0]))
  for path, update in updates[0].items():
    np.testing.assert_allclose(updates[1][path], update, rtol=1e-6)


def test_shapes_and_lists_do_as_well_as_arrays_and_tuples():
  params = make_params()
  shapes = jax.eval_shape(make_params)
  config = make_config()
  # As they come out of a JSON file.
  config.rules = tuple(map(list, RULES))
  transformation, _ = make_optimizer(config, shapes, total_steps=STEPS)
  trajectory, _ = train(transformation, params, steps=2)
  assert "text/token_embedding/embedding" not in changed(params, trajectory[-1])


def test_frozen_mask_marks_frozen_leaves_only():
  params = make_params()
  mask = flat(frozen_mask(params, RULES))
  assert mask.keys() == flat(params).keys()
  assert {path for path in mask if mask[path]} == {
    "text/token_embedding/embedding"
  }


def test_rule_errors_are_all_listed_with_close_paths():
  rules = (
    (r"image/.*", dict(learning_rate=0.1)),
    (r"image/encoder/.*", dict(freeze=True)),
    (r"text/token_embeding/.*", dict(freeze=True)),
    (r"text/(", dict(freeze=True)),
    (r"text/.*", dict(lr=0.1)),
    (r"text/.*", dict(learning_rate=0.0)),
    (r"text/.*", dict(weight_decay="0")),
    (r"text/.*", dict(freeze=True, learning_rate=2.0)),
    (r"encoder", dict(freeze=True)),
    "text",
    (r"logit_scale", dict(weight_decay=-1.0)),
  )
  with pytest.raises(UserError) as error:
    make_optimizer(make_config(rules=rules), make_params(), total_steps=STEPS)
  lines = str(error.value).split("\n  ")[1:]
  assert [line.split("]")[0] for line in lines] == [
    f"config.optimizer.rules[{index}" for index in range(1, 11)
  ]
  expected = [
    "earlier rules match all of its",
    "close paths: text/token_embedding/embedding",
    "text/(",
    "unknown option lr; known: freeze, learning_rate, weight_decay",
    "learning_rate must be above 0",
    "weight_decay must be a number",
    "freeze=True excludes",
    "matches no parameter's whole path",
    "'text'",
    "weight_decay must be at least 0",
  ]
  for line, words in zip(lines, expected, strict=True):
    assert words in line


def test_freezing_everything_is_an_error():
  config = make_config(rules=((r".*", dict(freeze=True)),))
  with pytest.raises(UserError, match="freeze every parameter"):
    make_optimizer(config, make_params(), total_steps=STEPS)
