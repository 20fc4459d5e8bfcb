"""Duplicates in a batch are left out or count as positive, on any ring."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
from PIL import Image
import pytest
import runs
from test_losses import (
  assert_close,
  make_inputs,
  make_mesh,
  MESHES,
  value_and_gradients,
)

from big_siglip import build, sharding, training_data
from big_siglip.data import pipeline
from big_siglip.errors import UserError
from big_siglip.losses import (
  LogitStatistics,
  ring_sigmoid_loss,
  ring_softmax_loss,
  sigmoid_loss,
  softmax_loss,
  text_id,
)
from big_siglip.models import SigLIP
from big_siglip.objectives.contrastive import make_identify

DENSE = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}
RINGS = {"sigmoid": ring_sigmoid_loss, "softmax": ring_softmax_loss}
WAYS = ("ignore", "positive")


def make_ids(n=32, seed=1):
  """Returns n22 ids of which texts and images stand twice, or nine times."""
  rng = np.random.default_rng(seed)
  ids = np.zeros((n, 2, 2), np.uint32)
  ids[:, 0] = rng.integers(0, n // 2, n)[:, None] + [0, 7]
  ids[:, 1, 0] = rng.permutation(n) // 2
  ids[: n // 4, 0] = 2**32 - 1
  # Equal in one word of two: not the same.
  ids[n // 2, 0], ids[n // 2 + 1, 0] = (5000, 1), (5000, 2)
  return ids


def same_of(ids):
  """Returns the n x n matrix, by Python's own comparison."""
  rows = [[tuple(identity) for identity in row] for row in ids.tolist()]
  return np.array([[any(map(tuple.__eq__, a, b)) for b in rows] for a in rows])


def float64_reference(name, way, ids, image, text, logit_scale, logit_bias):
  """Value, gradients and statistics by hand, in float64 numpy."""
  image, text = np.float64(image), np.float64(text)
  n, scale = len(image), np.exp(np.float64(logit_scale))
  matching, same = np.eye(n, dtype=bool), same_of(ids)
  positive = same if way == "positive" else matching
  ignored = same & ~positive
  dots = scale * image @ text.T
  logits = dots + np.float64(logit_bias)
  if name == "sigmoid":
    signs = np.where(positive, 1, -1)
    terms = np.where(ignored, 0, np.logaddexp(0, -signs * logits))
    d_logits = np.where(ignored, 0, -signs / (1 + np.exp(signs * logits))) / n
    loss, d_bias = terms.sum() / n, d_logits.sum()
  else:
    loss, d_logits, d_bias = 0, 0, 0
    weights = np.where(ignored, 0, np.exp(dots))
    for axis in (0, 1):
      shares = weights / weights.sum(axis, keepdims=True)
      wanted = positive / positive.sum(axis, keepdims=True)
      loss -= (wanted * np.where(positive, np.log(shares), 0)).sum() / n / 2
      d_logits += (shares - wanted) / n / 2
  d_dots = scale * d_logits
  gradients = d_dots @ text, d_dots.T @ image, (d_logits * dots).sum(), d_bias
  negatives = logits[~same]
  statistics = (
    logits[positive].mean(),
    negatives.mean(),
    np.where(same, -np.inf, logits).max(axis=1),
    np.float64(same.sum() - n),
  )
  return (loss, statistics), gradients


def with_gradients(function, inputs, ids):
  """Returns ((loss, statistics), gradients)."""

  def loss_of(image, text, scale, bias, ids):
    return function(image, text, scale, bias, ids=ids, statistics=True)

  return jax.jit(jax.value_and_grad(loss_of, (0, 1, 2, 3), has_aux=True))(
    *inputs, ids
  )


def assert_same_result(actual, expected, tolerance=1e-5):
  (loss, statistics), gradients = actual
  (wanted, seen), wanted_gradients = expected
  np.testing.assert_allclose(loss, wanted, rtol=tolerance)
  for a, e in zip(statistics, seen, strict=True):
    np.testing.assert_allclose(a, e, rtol=tolerance)
  assert_close(gradients[:3], wanted_gradients[:3], tolerance)
  np.testing.assert_allclose(
    gradients[3], wanted_gradients[3], rtol=tolerance, atol=1e-7
  )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DENSE)
def test_dense_equals_float64_numpy(name, way):
  inputs, ids = make_inputs(bias=-3.0), make_ids()
  function = functools.partial(DENSE[name], duplicates=way)
  expected = float64_reference(name, way, ids, *inputs)
  actual = with_gradients(function, inputs, ids)
  assert_same_result(actual, expected)
  plain = function(*inputs, ids=ids)
  np.testing.assert_allclose(plain, expected[0][0], rtol=1e-5)
  # They matter here, so that the test can fail.
  assert abs(DENSE[name](*inputs) - expected[0][0]) > 0.01


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize(
  "mesh_name,chunk_size",
  [
    ("8", 2),
    ("2x2x2", None),
    *(
      pytest.param(*options, marks=pytest.mark.slow)
      for options in [("1", None), ("2", 4), ("8", None), ("2x4", 1)]
    ),
  ],
)
def test_ring_equals_dense(mesh_name, chunk_size, name, way):
  shape, axes = MESHES[mesh_name]
  mesh, inputs, ids = make_mesh(shape), make_inputs(bias=-3.0), make_ids()
  split = NamedSharding(mesh, P(axes))
  ring = functools.partial(
    *(RINGS[name],),
    **dict(mesh=mesh, axes=axes, chunk_size=chunk_size, duplicates=way),
  )
  sharded = [*(jax.device_put(x, split) for x in inputs[:2]), *inputs[2:]]
  actual = with_gradients(ring, sharded, jax.device_put(ids, split))
  dense = functools.partial(DENSE[name], duplicates=way)
  assert_same_result(actual, with_gradients(dense, inputs, ids))


@pytest.mark.parametrize("name", DENSE)
def test_ring_without_statistics_and_gradient(name):
  mesh, inputs, ids = make_mesh((4, 1, 1)), make_inputs(bias=-3.0), make_ids()
  for way in WAYS:
    ring = functools.partial(
      RINGS[name], mesh=mesh, axes=("data",), ids=ids, duplicates=way
    )
    dense = functools.partial(DENSE[name], ids=ids, duplicates=way)
    expected = value_and_gradients(dense, inputs)
    np.testing.assert_allclose(jax.jit(ring)(*inputs), expected[0], rtol=1e-5)
    actual = value_and_gradients(ring, inputs)
    assert_close(actual[1][:3], expected[1][:3], 1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DENSE)
def test_bfloat16_products_cost_gradients_little(name, way):
  inputs, ids = make_inputs(n=64, width=64, bias=-3.0), make_ids(64)
  ring = functools.partial(
    RINGS[name], mesh=make_mesh((8, 1, 1)), axes=("data",), duplicates=way
  )
  rounded = functools.partial(ring, dtype="bfloat16")
  expected = with_gradients(ring, inputs, ids)
  actual = with_gradients(rounded, inputs, ids)
  for a, e in zip(actual[1][:3], expected[1][:3], strict=True):
    assert np.linalg.norm(a - e) <= 0.01 * np.linalg.norm(e)
  # Ids are no products: what is the same stays the same.
  assert actual[0][1].duplicates == expected[0][1].duplicates


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DENSE)
def test_ids_that_all_differ_change_nothing(name, way):
  inputs, ids = make_inputs(), np.arange(32)
  mesh = make_mesh((8, 1, 1))
  for function in (
    DENSE[name],
    functools.partial(RINGS[name], mesh=mesh, axes=("data",)),
  ):
    marked = functools.partial(function, duplicates=way)
    (loss, statistics), gradients = with_gradients(marked, inputs, ids)
    expected = value_and_gradients(function, inputs)
    assert_close((loss, gradients[:3]), (expected[0], expected[1][:3]), 1e-5)
    assert statistics.duplicates == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DENSE)
def test_a_batch_of_one_text_has_no_negatives_and_stays_finite(name, way):
  inputs, ids = make_inputs(n=8), np.zeros(8, np.int32)
  mesh = make_mesh((4, 1, 1))
  ring = functools.partial(RINGS[name], mesh=mesh, axes=("data",))
  for function in (DENSE[name], ring):
    marked = functools.partial(function, duplicates=way)
    (loss, statistics), gradients = with_gradients(marked, inputs, ids)
    for x in jax.tree.leaves((loss, statistics, gradients)):
      assert np.all(np.isfinite(x))
    assert statistics.negative == 0 and statistics.duplicates == 56
    assert np.all(statistics.hardest_negative == 0)


def compiled_with_ids(name, way, devices):
  mesh, n = make_mesh((devices, 1, 1)), 256 * devices
  split = NamedSharding(mesh, P("data"))
  x = jax.ShapeDtypeStruct((n, 64), jnp.float32, sharding=split)
  ids = jax.ShapeDtypeStruct((n, 2, 2), jnp.uint32, sharding=split)
  scalar = jax.ShapeDtypeStruct((), jnp.float32)

  def loss_of(image, text, scale, bias, ids):
    return RINGS[name](
      *(image, text, scale, bias),
      **dict(mesh=mesh, axes=("data",), ids=ids, duplicates=way),
    )

  gradient = jax.jit(
    jax.grad(loss_of, (0, 1, 2, 3)), out_shardings=(split, split, None, None)
  )
  return gradient.lower(x, x, scalar, scalar, ids).compile()


@pytest.mark.parametrize("name", RINGS)
def test_memory_of_the_ring_with_ids_does_not_grow_with_devices(name):
  two, eight = (compiled_with_ids(name, "positive", k) for k in (2, 8))
  sizes = [x.memory_analysis().temp_size_in_bytes for x in (two, eight)]
  assert sizes[1] <= 1.1 * sizes[0]
  # The comparisons of ids never stand in memory as K W matrices.
  assert sizes[1] < 4 * 4 * 256 * 256 + 16 * 4 * 256 * 64
  assert "all-gather" not in eight.as_text()


def test_equal_texts_have_equal_ids_and_others_do_not():
  rng = np.random.default_rng(0)
  # Bytes that differ in one place, and permutations of each other.
  tokens = np.ones((4_000, 16), np.int32)
  tokens[:, :6] = rng.integers(3, 7, (4_000, 6))
  ids = np.asarray(jax.jit(text_id)(tokens))
  assert ids.shape == (4_000, 1, 2) and ids.dtype == np.uint32
  distinct = len(np.unique(tokens, axis=0))
  assert len(np.unique(ids[:, 0], axis=0)) == distinct < 4_000
  # Each of the words alone does not collide here either.
  for word in range(2):
    assert len(np.unique(ids[:, 0, word])) == distinct
  _, first, group = np.unique(
    tokens, axis=0, return_index=True, return_inverse=True
  )
  np.testing.assert_array_equal(ids, ids[first][group.ravel()])


def test_wrong_ids_are_refused():
  inputs = make_inputs()
  mesh = make_mesh((2, 1, 1))
  ring = functools.partial(ring_sigmoid_loss, mesh=mesh, axes=("data",))
  for function in (sigmoid_loss, softmax_loss, ring):
    with pytest.raises(UserError, match=r"ids of shape \(5,\): must be"):
      function(*inputs, ids=np.arange(5))
    with pytest.raises(UserError, match="duplicates='drop': must be one of"):
      function(*inputs, ids=np.arange(32), duplicates="drop")


def _batch(config):
  rng = np.random.default_rng(0)
  size, length = config.batch_size, config.model.text.length
  pixels = config.model.image.image_size
  text = rng.integers(0, 259, (size, length), np.int32)
  text[1], text[5] = text[0], text[3]
  return {
    "image": rng.integers(0, 256, (size, pixels, pixels, 3), np.uint8),
    "text": text,
    "image_index": np.arange(size) // 4,
    "faults": np.zeros((size, 6), np.int32),
  }


@pytest.mark.parametrize(
  "same,pairs", [("text", 4), ("image", 16 * 3), ("either", 16 * 3 + 2)]
)
def test_texts_images_or_either_make_an_example_the_same(same, pairs):
  config = runs.config(loss__duplicates="ignore", loss__same=same)
  ids = make_identify(config.loss)(_batch(config))
  assert same_of(np.asarray(ids)).sum() - config.batch_size == pairs


def test_captions_of_an_image_in_a_real_batch_are_the_same(tmp_path):
  """Each caption an example: three of an image, two equal texts in all."""
  rows = ["image,caption"]
  for number in range(4):
    pixels = np.full((8, 8, 3), 60 * number, np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    rows += [f"{number}.png,{number} {i}" for i in range(2)]
    rows += [f"{number}.png,{['a', 'b', 'c', 'a'][number]}"]
  (tmp_path / "captions.csv").write_text("\n".join(rows))
  data = dict(name="folder", path=str(tmp_path), split="all", captions="all")
  changes = {f"data__{name}": value for name, value in data.items()}
  for same, pairs in (("image", 4 * 3 * 2), ("text", 2), ("either", 26)):
    options = dict(loss__duplicates="ignore", loss__same=same, batch_size=12)
    config = runs.config(**changes, **options)
    views = build.views(config)
    source = training_data.train_source(config)
    batches = pipeline.train_batches(source, views, batch_size=12, seed=0)
    batch = next(batches)
    batches.close()
    assert sorted(batch["index"]) == list(range(12))
    ids = make_identify(config.loss)(batch)
    assert same_of(np.asarray(ids)).sum() - 12 == pairs


def test_a_step_in_slices_finds_those_of_the_whole_batch():
  config = runs.config(
    loss__duplicates="positive", loss__same="either", mesh__data=2
  )
  config.microbatch = 8
  mesh = build.mesh(config, jax.devices()[:2])
  program, batch = build.program(config, mesh), _batch(config)
  state = program.init()
  embedded = jax.jit(SigLIP(config.model).apply)(
    {"params": jax.device_get(state.params)}, batch["image"], batch["text"]
  )
  ids = make_identify(config.loss)(batch)
  expected = sigmoid_loss(*embedded, ids=ids, duplicates="positive")
  plain = sigmoid_loss(*embedded)
  _, metrics = program.step(state, sharding.to_global(mesh, batch))
  assert metrics["duplicate_pairs"] == 16 * 3 + 2
  np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
  assert abs(plain - expected) > 0.01


def test_without_them_a_step_computes_no_ids():
  config = runs.config(mesh__data=1)
  mesh = build.mesh(config, jax.devices()[:1])
  program = build.program(config, mesh)
  batch = build.abstract_batch(config, mesh)
  lowered = program.step.lower(program.abstract_state, batch)
  assert "duplicate_pairs" not in lowered.out_info[1]
  assert LogitStatistics(0, 0, 0).duplicates is None


@pytest.mark.parametrize("field", ["duplicates", "same"])
def test_another_word_in_the_config_is_named(field):
  with pytest.raises(UserError, match=f"config.loss.{field}='drop': must be"):
    runs.config(**{f"loss__{field}": "drop"})
