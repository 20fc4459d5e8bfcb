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
import runs

from big_siglip import build, sharding
from big_siglip.errors import UserError
from big_siglip.models import restack
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


BLOCK_RULES = {
  "a block by number": (
    (r"text/encoder/block_0/.*|text/.*embedding.*", dict(freeze=True)),
  ),
  "a slice": ((r"(image|text)/encoder/blocks[:1]/.*", dict(freeze=True)),),
  "the last": ((r".*/blocks[-1]/.*", dict(freeze=True)),),
  "a rate for each": (
    (r".*/block_0/.*", dict(learning_rate=0.25, weight_decay=0.5)),
    (r".*/blocks[1:]/.*", dict(learning_rate=0.5)),
  ),
  "frozen, slow and as ever": (
    (r"image/.*/blocks[0]/.*", dict(freeze=True)),
    (r".*/blocks[:1]/.*bias", {}),
    (r".*/blocks/.*", dict(learning_rate=0.1, weight_decay=0.0)),
  ),
  "all, by their numbers": ((r"text/encoder/block_\d/.*", dict(freeze=True)),),
}


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion"])
@pytest.mark.parametrize("kind", BLOCK_RULES)
def test_rules_of_blocks_mean_the_same_stacked_or_not(kind, name):
  config = make_config(name=name, rules=BLOCK_RULES[kind])
  stacked = make_params()
  single = restack(stacked, False)
  trajectories = {}
  for scan, params in ((True, stacked), (False, single)):
    transformation, _ = make_optimizer(config, params, total_steps=STEPS)
    state = transformation.init(params)
    update = jax.jit(transformation.update)
    for step in range(STEPS):
      grads = restack(gradients(step), scan)
      updates, state = update(grads, state, params)
      params = optax.apply_updates(params, updates)
    trajectories[scan] = flat(restack(params, False))
  moved = {
    scan: {
      path
      for path, value in flat(single).items()
      if not np.array_equal(value, after[path])
    }
    for scan, after in trajectories.items()
  }
  assert moved[True] == moved[False]
  assert moved[True], "something trains"
  frozen = {path for path in flat(single)} - moved[True]
  assert bool(frozen) == any(
    options.get("freeze") for _, options in BLOCK_RULES[kind]
  )
  for path, value in trajectories[False].items():
    np.testing.assert_allclose(
      trajectories[True][path], value, rtol=1e-6, atol=1e-7, err_msg=path
    )


def test_frozen_blocks_are_marked_one_by_one():
  rules = ((r"text/encoder/blocks[1:]/.*", dict(freeze=True)),)
  mask = frozen_mask(make_params(), rules)
  kernel = mask["text"]["encoder"]["blocks"]["mlp"]["up"]["kernel"]
  np.testing.assert_array_equal(kernel, [[[False]], [[True]]])
  assert mask["image"]["encoder"]["blocks"]["mlp"]["up"]["kernel"] is False
  single = frozen_mask(restack(make_params(), False), rules)
  assert single["text"]["encoder"]["block_1"]["mlp"]["up"]["kernel"] is True
  for pattern in (r"text/encoder/block_2/.*", r"text/encoder/blocks[2:]/.*"):
    with pytest.raises(UserError, match="matches no parameter's whole path"):
      frozen_mask(make_params(), ((pattern, dict(freeze=True)),))
  with pytest.raises(UserError, match="freeze every parameter"):
    make_optimizer(
      make_config(rules=((".*", dict(freeze=True)),)),
      make_params(),
      total_steps=STEPS,
    )


@pytest.mark.slow
def test_blocks_that_are_frozen_in_a_run_stay_as_they_were():
  rules = (
    (r"image/encoder/blocks[:1]/.*|text/.*embedding.*", dict(freeze=True)),
    (r"text/encoder/block_1/.*", dict(learning_rate=0.1)),
  )
  ends = {}
  for scan in (True, False):
    config = runs.config(
      model__scan=scan, model__image__depth=2, model__text__depth=2
    )
    config.optimizer.rules = rules
    config.optimizer.warmup_steps = 0
    mesh = build.mesh(config)
    program = build.program(config, mesh)
    batch = {
      name: np.full((config.batch_size, *field.shape), 3, field.dtype)
      for name, field in build.step_fields(config).items()
    }
    batch["image"] = np.random.default_rng(0).integers(
      0, 256, batch["image"].shape, np.uint8
    )
    batch["text"] += np.arange(config.batch_size, dtype=np.int32)[:, None]
    state = program.init()
    before = jax.device_get(restack(start(state.params), scan))
    state = program.start_from(
      state,
      jax.device_put(
        before, jax.tree.map(lambda leaf: leaf.sharding, state.params)
      ),
    )
    for _ in range(2):
      state, metrics = program.step(state, sharding.to_global(mesh, batch))
    ends[scan] = (
      flat(restack(before, False)),
      flat(restack(jax.device_get(state.params), False)),
      float(metrics["grad_norm"]),
    )
  moved = {
    path
    for path, value in ends[True][0].items()
    if not np.array_equal(value, ends[True][1][path])
  }
  assert not any(
    path.startswith(("image/encoder/block_0/", "text/token_em"))
    for path in moved
  )
  assert {"image/encoder/block_1/mlp/up/kernel"} < moved
  np.testing.assert_allclose(ends[True][2], ends[False][2], rtol=1e-5)
  for path, value in ends[False][1].items():
    if path.endswith("key/bias"):
      continue  # Its gradient is zero but for rounding, which Adam blows up.
    np.testing.assert_allclose(
      ends[True][1][path], value, rtol=1e-4, atol=1e-5, err_msg=path
    )


def start(params):
  """Returns parameters that are the same stacked or not."""
  single = restack(jax.device_get(params), False)

  def same(key, leaf):
    rng = np.random.default_rng(len(jax.tree_util.keystr(key)))
    return np.float32(leaf * 0 + 0.2 * rng.normal(size=leaf.shape))

  return jax.tree_util.tree_map_with_path(same, single)
