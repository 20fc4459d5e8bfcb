"""Every implementation of attention gives the same values and gradients."""

import contextlib
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_siglip import sharding
from big_siglip.errors import UserError
from big_siglip.models import attention as attention_module
from big_siglip.models import backends
from big_siglip.models.attention import attention
from big_siglip.models.backends import choose, Problem, suits
from big_siglip.models.compute import Compute
from big_siglip.models.splash_attention import splash_attention
from big_siglip.models.transformer import Encoder
from big_siglip.plan import topologies
from big_siglip.schema import words


def _inputs(length=24, keys=24, heads=2, size=8, batch=2):
  rngs = jax.random.split(jax.random.key(0), 4)
  shapes = [(batch, length, heads, size)] + [(batch, keys, heads, size)] * 2
  shapes.append(shapes[0])
  pairs = zip(rngs, shapes, strict=True)
  return [jax.random.normal(rng, shape) for rng, shape in pairs]


def _mask(batch, keys):
  """Pads behind, pads before, pads between, pads alone."""
  real = np.ones((batch, keys), bool)
  real[0, keys // 2 :] = False
  real[1, :3] = False
  if batch > 3:
    real[2, ::2] = False
    real[3] = False
  return real


def _reference(query, key, value, mask=None, causal=False):
  """Written out in float64 numpy; a query that sees no key gets zeros."""
  query, key, value = map(np.float64, (query, key, value))
  logits = np.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
  seen = np.ones(logits.shape, bool)
  if mask is not None:
    seen &= mask[:, None, None, :]
  if causal:
    seen &= np.tri(logits.shape[2], dtype=bool)
  weights = np.exp(logits - logits.max(-1, keepdims=True)) * seen
  weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
  return np.einsum("bhqk,bkhd->bqhd", weights, value)


@pytest.mark.parametrize("backend", ["auto", "xla", "heads_first"])
@pytest.mark.parametrize("length", [1, 24])
def test_values_equal_numpy(backend, length):
  *inputs, _ = _inputs(length=length)
  actual = attention(*inputs, backend=backend)
  np.testing.assert_allclose(actual, _reference(*inputs), atol=1e-5)


def _with_gradients(backend, inputs, **options):
  *inputs, cotangent = inputs

  def function(*inputs):
    return attention(*inputs, backend=backend, **options)

  @jax.jit
  def value_and_gradients(*inputs):
    value, vjp = jax.vjp(function, *inputs)
    return value, *vjp(cotangent)

  return value_and_gradients(*inputs)


def _plain(inputs, mask=None, causal=False):
  """Value and gradients of JAX's own; zeros for queries that see no key."""
  *inputs, cotangent = inputs
  batch, queries, keys = *inputs[0].shape[:2], inputs[1].shape[1]
  seen = np.ones((batch, 1, queries, keys), bool)
  if mask is not None:
    seen &= mask[:, None, None, :]
  if causal:
    seen &= np.tri(queries, keys, dtype=bool)
  seeing = seen.any(-1)[:, 0, :, None, None]

  def function(*inputs):
    attended = jax.nn.dot_product_attention(*inputs, mask=jnp.asarray(seen))
    return jnp.where(seeing, attended, 0)

  @jax.jit
  def value_and_gradients(*inputs):
    value, vjp = jax.vjp(function, *inputs)
    return value, *vjp(cotangent)

  return value_and_gradients(*inputs)


def _assert_close(actual, expected, atol):
  for got, wanted in zip(actual, expected, strict=True):
    np.testing.assert_allclose(got, wanted, atol=atol)


@contextlib.contextmanager
def _tpu(monkeypatch):
  """Lets kernels for TPUs be chosen, to be interpreted where there is none."""
  with monkeypatch.context() as patch:
    patch.setattr(backends, "platform_of", lambda _: "tpu")
    yield


_CASES = [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize("backend", ["xla", "heads_first"])
@pytest.mark.parametrize(("masked", "causal"), _CASES)
def test_masks_and_causal_equal_numpy_and_jax(backend, masked, causal):
  inputs = _inputs(batch=4)
  mask = _mask(4, 24) if masked else None
  actual = _with_gradients(backend, inputs, mask=mask, causal=causal)
  wanted = _reference(*inputs[:3], mask, causal)
  np.testing.assert_allclose(actual[0], wanted, atol=1e-5)
  _assert_close(actual, _plain(inputs, mask, causal), 1e-5)


def test_a_single_query_sees_real_keys_alone():
  inputs = _inputs(length=1, batch=4)
  mask = _mask(4, 24)
  actual = _with_gradients("auto", inputs, mask=mask)
  _assert_close(actual, _plain(inputs, mask), 1e-5)
  assert not np.any(actual[0][3])


# 128 fills the kernel's blocks, 196 (B/16) does not; 72 is So400m's head size.
@pytest.mark.parametrize(
  ("queries", "keys", "size", "masked", "causal"),
  [
    (128, 128, 72, False, False),
    (196, 196, 64, False, False),
    (128, 256, 8, False, False),
    (196, 130, 8, False, False),
    (20, 200, 8, True, False),
    (196, 196, 8, True, True),
    (1280, 1280, 8, False, True),  # Two blocks; one of four is not computed.
    (130, 1300, 8, False, False),  # Padded to two blocks of 768.
  ],
)
def test_splash_equals_plain_products(
  queries, keys, size, masked, causal, monkeypatch
):
  batch = 4 if masked else 2
  inputs = _inputs(queries, keys, heads=1, size=size, batch=batch)
  mask = _mask(batch, keys) if masked else None
  with _tpu(monkeypatch):
    actual = _with_gradients(
      "splash", inputs, mask=mask, causal=causal, length=queries
    )
  _assert_close(actual, _plain(inputs, mask, causal), 2e-5)


@pytest.mark.parametrize("backend", ["xla", "heads_first", "splash"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("garbage", [1e30, np.nan])
def test_what_is_not_real_changes_nothing(
  backend, causal, garbage, monkeypatch
):
  query, key, value, cotangent = _inputs(130, 130, heads=1, batch=4)
  mask = _mask(4, 130)

  def results(filled):
    real = jnp.asarray(mask)[:, :, None, None]
    filled = [jnp.where(real, x, filled) for x in (key, value)]
    inputs = query, *filled, cotangent
    with _tpu(monkeypatch) if backend == "splash" else contextlib.nullcontext():
      return _with_gradients(backend, inputs, mask=mask, causal=causal)

  clean, dirty = results(0.0), results(garbage)
  for got, wanted in zip(dirty, clean, strict=True):
    np.testing.assert_array_equal(got, wanted)
  value, d_query, d_key, d_value = map(np.asarray, clean)
  assert not value[3].any() and not d_query[3].any()
  assert not d_key[~mask].any() and not d_value[~mask].any()


# 200 tokens are padded to 256 before the blocks, 130 in each of them.
@pytest.mark.parametrize(
  ("length", "masked", "meshed"),
  [(200, False, True), (200, True, False), (130, True, True)],
)
def test_a_tower_with_splash_equals_one_without(
  length, masked, meshed, monkeypatch
):
  split = None
  if meshed:
    mesh = sharding.make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
    split = sharding.batch_sharding(mesh)
  x = jax.random.normal(jax.random.key(0), (4, length, 16))
  mask = _mask(4, length) if masked else None

  def both(backend, split=None):
    compute = Compute("float32", backend, "full", True, split, 2 * length)
    encoder = Encoder(2, 2, 24, compute)

    @jax.jit
    def run(x):
      def score(params, x):
        return (encoder.apply(params, x, mask) ** 3).sum()

      params = encoder.init(jax.random.key(1), x[:1])
      return jax.value_and_grad(score, (0, 1))(params, x)

    return run(x)

  expected = both("xla")
  taken = []

  def splash(query, *args):
    taken.append(query.shape[1])
    return splash_attention(query, *args)

  monkeypatch.setattr(attention_module, "splash_attention", splash)
  with _tpu(monkeypatch):
    actual = both("splash", split)
  assert set(taken) == {256 if length == 200 else length}
  for path, wanted in jax.tree.leaves_with_path(expected):
    if "['key']['bias']" in jax.tree_util.keystr(path):
      continue  # The softmax does not feel it: its gradient is rounding.
    got = dict(jax.tree.leaves_with_path(actual))[path]
    scale = float(jnp.abs(wanted).max())
    np.testing.assert_allclose(got, wanted, atol=5e-6 * scale, err_msg=path)


@pytest.mark.parametrize("backend", ["auto", "splash"])
def test_masks_on_a_mesh(backend, monkeypatch):
  mesh = sharding.make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
  placed = sharding.batch_sharding(mesh)
  inputs = _inputs(130, 130, batch=4)
  mask = _mask(4, 130)
  expected = _with_gradients("xla", inputs, mask=mask)
  on_tpu = backend == "splash"
  with _tpu(monkeypatch) if on_tpu else contextlib.nullcontext():
    actual = _with_gradients(backend, inputs, sharding=placed, mask=mask)
  _assert_close(actual, expected, 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
  ("queries", "keys", "size", "masked", "causal"),
  [
    (256, 256, 72, True, False),
    (64, 64, 72, True, True),
    (196, 64, 64, True, False),
    (600, 600, 80, False, True),
    (1024, 1024, 80, True, True),  # The longest block.
    (1024, 1024, 128, True, True),
  ],
)
def test_the_tpu_compiler_takes_masks(
  queries, keys, size, masked, causal, dtype
):
  pytest.importorskip("libtpu")
  # Of all TPUs a v4 has the smallest fast memory for a kernel.
  devices, _ = topologies.describe("v4:2x2x1" if queries > 600 else "v5e:2x2")
  mesh = sharding.make_mesh(data=2, tensor=2, devices=devices)
  placed = sharding.batch_sharding(mesh)

  def array(length, *rest, dtype=dtype):
    shape = 8, length, *rest
    return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

  query = array(queries, 2, size)
  key = array(keys, 2, size)
  mask = array(keys, dtype="bool") if masked else None

  @jax.jit
  def both_ways(query, key, mask):
    attend = functools.partial(
      attention, backend="splash", sharding=placed, mask=mask, causal=causal
    )
    value, vjp = jax.vjp(attend, query, key, key)
    return value, vjp(value)

  assert (
    "tpu_custom_call" in both_ways.lower(query, key, mask).compile().as_text()
  )


@pytest.mark.parametrize("meshed", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
def test_causal_sequences_of_a_row_equal_each_alone(parallel, meshed):
  *inputs, cotangent = _inputs(length=24, batch=4)
  free = np.random.default_rng(0).random((4, 3)) < 0.5 if parallel else None
  split = None
  if meshed:
    mesh = sharding.make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
    split = sharding.batch_sharding(mesh)

  def alone(x):
    return x.reshape(12, 8, *x.shape[2:])

  expected = _with_gradients(
    "xla",
    [alone(x) for x in (*inputs, cotangent)],
    causal=True,
    parallel=None if free is None else free.reshape(12),
  )
  found = _with_gradients(
    "short",
    [*inputs, cotangent],
    causal=True,
    parallel=free,
    length=8,
    sharding=split,
  )
  _assert_close(map(alone, found), expected, 2e-6)


def test_more_queries_than_keys_and_fewer_equal_plain_products():
  for length, keys in ((24, 10), (10, 24)):
    inputs = _inputs(length=length, keys=keys)
    found = _with_gradients("short", inputs)
    _assert_close(found, _with_gradients("xla", inputs), 2e-6)


@pytest.mark.parametrize("backend", ["splash", "short", "cudnn"])
def test_kernels_leave_a_single_query_to_plain_products(backend):
  *inputs, _ = _inputs(length=1)
  np.testing.assert_array_equal(
    attention(*inputs, backend=backend), attention(*inputs, backend="xla")
  )


def test_auto_follows_the_mesh():
  *inputs, _ = _inputs()
  placed = sharding.batch_sharding(sharding.make_mesh())
  text = str(
    jax.make_jaxpr(lambda *x: attention(*x, backend="auto", sharding=placed))(
      *inputs
    )
  )
  first = str(
    jax.make_jaxpr(lambda *x: attention(*x, backend="heads_first"))(*inputs)
  )
  assert text == first


@pytest.mark.parametrize(
  ("platform", "dtype", "queries", "keys", "mask", "chosen"),
  [
    ("cpu", "bfloat16", 256, 256, True, "heads_first"),
    ("gpu", "bfloat16", 256, 256, True, "cudnn"),
    ("gpu", "bfloat16", 729, 729, False, "xla"),  # Odd: So400m/14, 384 pixels.
    ("gpu", "float32", 256, 256, False, "xla"),
    ("gpu", "bfloat16", 1, 256, False, "xla"),
    ("tpu", "bfloat16", 256, 256, False, "splash"),
    ("tpu", "bfloat16", 729, 729, True, "splash"),
    ("tpu", "bfloat16", 64, 64, False, "xla"),
    ("tpu", "bfloat16", 1, 256, False, "xla"),
    ("other", "bfloat16", 256, 256, False, "xla"),
  ],
)
def test_auto_takes_the_first_that_suits(
  platform, dtype, queries, keys, mask, chosen, monkeypatch
):
  monkeypatch.setattr(backends, "platform_of", lambda _: platform)
  shape = 128, queries, 16, 72, dtype
  assert choose("auto", *shape, keys=keys, mask=mask) == chosen


_PROBLEM = Problem("tpu", "bfloat16", 128, 256, 256, 16, 72)


@pytest.mark.parametrize(
  ("backend", "changes", "reason"),
  [
    ("splash", {"platform": "cpu"}, "needs a TPU, not a cpu"),
    ("splash", {"head_shards": 3}, "config.mesh.tensor=3"),
    ("short", {"head_shards": 3}, "config.mesh.tensor=3"),
    ("short", {"keys": 1296}, "fewer logits than 256 queries and 1296 keys"),
    ("short", {"mask": True}, "has no masks; splash"),
    ("short", {"causal": True, "queries": 77, "keys": 77}, "of 77; splash"),
    ("short", {"queries": 729, "keys": 729}, "at most 572 tokens, not 729"),
    ("short", {"queries": 196, "keys": 196, "heads": 40}, "not 2880"),
    ("cudnn", {}, "needs a GPU, not a tpu"),
    ("cudnn", {"platform": "gpu", "dtype": "float32"}, "dtype=bfloat16"),
    ("cudnn", {"platform": "gpu", "size": 20}, "a multiple of 8"),
    ("cudnn", {"platform": "gpu", "size": 136}, "up to 128"),
    ("cudnn", {"platform": "gpu", "keys": 49}, "even lengths"),
    ("cudnn", {"platform": "gpu", "capability": "7.5"}, "8.0 .* not 7.5"),
    ("cudnn", {"platform": "gpu", "capability": "gfx942"}, "a GPU of NVIDIA"),
  ],
)
def test_what_is_named_and_cannot_is_refused_in_a_line(
  backend, changes, reason, monkeypatch
):
  problem = dataclasses.replace(_PROBLEM, **changes)
  assert re.search(reason, backends.lack(backend, problem))
  assert not suits(backend, problem)
  monkeypatch.setattr(backends, "platform_of", lambda _: problem.platform)
  monkeypatch.setattr(backends, "_capability_of", lambda _: problem.capability)
  if problem.head_shards > 1:
    return
  with pytest.raises(UserError, match=reason) as error:
    choose(
      backend,
      problem.batch,
      problem.queries,
      problem.heads,
      problem.size,
      problem.dtype,
      keys=problem.keys,
      mask=problem.mask,
      causal=problem.causal,
    )
  message = str(error.value)
  assert message.startswith(f"config.model.attention={backend}: ")
  assert "\n" not in message


def test_heads_that_the_mesh_does_not_divide_are_refused(monkeypatch):
  monkeypatch.setattr(backends, "platform_of", lambda _: "tpu")
  mesh = sharding.make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
  placed = sharding.batch_sharding(mesh)
  assert choose("auto", 8, 256, 3, 64, "bfloat16", placed) == "xla"
  for backend in ("short", "splash"):
    with pytest.raises(UserError, match="config.mesh.tensor=2 divides, not 3"):
      choose(backend, 8, 256, 3, 64, "bfloat16", placed)


def test_a_number_of_examples_is_no_reason_to_refuse(monkeypatch):
  mesh = sharding.make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
  placed = sharding.batch_sharding(mesh)
  # Parameters are initialised on one example, whatever the chip.
  assert choose("splash", 1, 256, 2, 64, "bfloat16") == "heads_first"
  monkeypatch.setattr(backends, "platform_of", lambda _: "tpu")
  assert choose("short", 64, 196, 2, 64, "bfloat16", placed) == "short"
  assert choose("short", 62, 196, 2, 64, "bfloat16", placed) == "splash"
  assert choose("splash", 63, 196, 2, 64, "bfloat16", placed) == "xla"


@pytest.mark.parametrize(
  ("changes", "options", "reason"),
  [
    (
      {"keys": 256, "length": 128},
      {"backend": "short", "length": 64},
      "cut sequences of 64",
    ),
    ({"keys": 256, "length": 128}, {"causal": True}, "128 queries to 256 keys"),
    ({"length": 128, "keys": 128}, {"length": 64}, "sequences of 64"),
    ({"length": 128}, {"length": 60, "backend": "short"}, "sequences of 60"),
    ({}, {"mask": np.ones((2, 23), bool)}, "must be bool"),
    ({}, {"mask": np.ones((2, 24), np.int32)}, "must be bool"),
  ],
)
def test_shapes_that_do_not_go_together_are_refused(changes, options, reason):
  *inputs, _ = _inputs(**changes)
  with pytest.raises(ValueError, match=reason) as error:
    attention(*inputs, **{"backend": "xla", **options})
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("backend", ["xla", "short"])
def test_keys_of_another_shape_are_refused(backend):
  query, key, value, _ = _inputs()
  for wrong in ((key[:1], value[:1]), (key[:, :, :1], value[:, :, :1])):
    with pytest.raises(ValueError, match="must be"):
      attention(query, *wrong, backend=backend)
  with pytest.raises(ValueError, match="must be"):
    attention(query, key, value[:, :20], backend=backend)


def test_every_name_is_an_implementation():
  *inputs, _ = _inputs()
  inputs = [x.astype(jnp.bfloat16) for x in inputs]
  for backend in words.ATTENTIONS:
    if backend not in ("cudnn", "splash"):
      assert attention(*inputs, backend=backend).dtype == jnp.bfloat16
