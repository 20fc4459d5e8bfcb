"""The kernel for short sequences, interpreted, and layers with its layouts."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from peers import torch
import pytest

from big_siglip import sharding
from big_siglip.models import transformer
from big_siglip.models.compute import Compute
from big_siglip.models.dense import (
  add_bias,
  Dense,
  gelu_product,
  join,
  product,
)
from big_siglip.models.short_attention import (
  fills_tiles,
  lack,
  short_attention,
  short_attention_rows,
  whole_rows,
)
from big_siglip.models.transformer import Encoder


def _encoder(backend, split=None):
  return Encoder(
    2,
    2,
    48,
    Compute("float32", backend, "full", True, split, slice_tokens=128),
  )


def _value_and_gradients(encoder, params, x):
  weights = jnp.cos(jnp.arange(x.shape[-1], dtype=jnp.float32))[None, None]

  def score(params, x):
    return (encoder.apply(params, x) ** 3 * weights).sum()

  return jax.jit(jax.value_and_grad(score, (0, 1)))(params, x)


# Two sequences of 64 share a row of 128 tokens, and a row may be a whole one;
# of 20 tokens two make full tiles of 8 rows, of 5 tokens eight. On a mesh those
# that a row is made of go in slices.
@pytest.mark.parametrize(
  ("batch", "length", "wide"),
  [(8, 64, False), (8, 64, True), (4, 128, False), (64, 20, False)],
)
@pytest.mark.parametrize("meshed", [False, True])
def test_an_encoder_with_the_kernel_equals_one_without(
  batch, length, wide, meshed, monkeypatch
):
  if wide:  # Then query, key and value are products of their own.
    monkeypatch.setattr(transformer, "_WIDE", 0)
  split = None
  if meshed:
    mesh = sharding.make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
    split = sharding.batch_sharding(mesh)
  x = jax.random.normal(jax.random.key(0), (batch, length, 32))

  @jax.jit
  def draw(x):
    params = _encoder("xla").init(jax.random.key(1), x)
    return jax.tree.map(
      lambda p: p + 0.02 * jax.random.normal(jax.random.key(2), p.shape), params
    )

  params = draw(x[:1])
  expected = _value_and_gradients(_encoder("xla"), params, x)
  actual = _value_and_gradients(_encoder("short", split), params, x)
  # The softmax does not feel the keys' bias: its gradient is but rounding.
  for result in (expected, actual):
    result[1][0]["params"]["blocks"]["attention"]["key"].pop("bias")
  for path, wanted in jax.tree.leaves_with_path(expected):
    got = dict(jax.tree.leaves_with_path(actual))[path]
    scale = float(jnp.abs(wanted).max())
    np.testing.assert_allclose(got, wanted, atol=5e-6 * scale, err_msg=path)


def test_sequences_of_a_row_do_not_see_each_other():
  x = jax.random.normal(jax.random.key(0), (2, 64, 32))
  encoder = _encoder("short")
  params = jax.jit(encoder.init)(jax.random.key(1), x[:1])
  apply = jax.jit(encoder.apply)
  one, other = apply(params, x), apply(params, x.at[1].set(0))
  np.testing.assert_array_equal(one[0], other[0])
  assert not np.array_equal(one[1], other[1])


@pytest.mark.parametrize(
  ("rows", "length", "heads", "size", "held", "filled"),
  [
    (128, 256, 16, 72, True, True),  # So400m/14, 224 pixels.
    (128, 64, 16, 72, True, True),  # Its text.
    (128, 196, 12, 64, True, True),  # B/16, 224 pixels.
    (32, 196, 12, 64, True, True),
    (16, 196, 12, 64, True, False),  # No whole number of rows of 128 tokens.
    (127, 64, 12, 64, True, False),
    (128, 729, 16, 72, False, True),  # So400m/14, 384 pixels: too long.
    (128, 196, 24, 128, False, True),  # Too wide.
  ],
)
def test_what_the_kernel_holds(rows, length, heads, size, held, filled):
  assert (lack(length, heads, size) == "") is held
  assert fills_tiles(rows, length) is filled


@pytest.mark.parametrize(
  ("length", "rows"), [(64, 1), (128, 1), (256, 1), (20, 5), (196, 49)]
)
def test_rows_that_may_be_cut_hold_whole_sequences(length, rows):
  assert whole_rows(length) == rows
  if rows > 1:
    sequences, rest = divmod(rows * 128, length)
    assert not rest and fills_tiles(sequences, length)


@pytest.mark.parametrize(
  ("arrays", "queries"), [(1, 128), (2, 128), (2, 64), (3, 128), (3, 64)]
)
def test_what_shares_an_array_is_attended_to_as_by_itself(arrays, queries):
  keys = jax.random.split(jax.random.key(0), 4)
  query, key, value, d = (
    jax.random.normal(key, (2, 3, 8, tokens))
    for key, tokens in zip(keys, (queries, 128, 128, queries), strict=True)
  )

  def shared(*parts):
    rows, heads, size, tokens = parts[0].shape
    return jnp.stack(parts, 2).reshape(rows, heads * len(parts), size, tokens)

  def kernel(query, key, value):
    given = {
      1: lambda: (shared(query, key, value),),
      2: lambda: (query, shared(key, value)),
      3: lambda: (query, key, value),
    }[arrays]()
    return short_attention(given, None, queries, True)

  def plain(query, key, value):
    logits = jnp.einsum("RHhQ,RHhK->RHQK", query, key) * 8**-0.5
    return jnp.einsum("RHQK,RHhK->RHhQ", jax.nn.softmax(logits), value)

  results = []
  for attend in (kernel, plain):
    attended, backward = jax.vjp(attend, query, key, value)
    results.append((attended, *backward(d)))
  for actual, expected in zip(*results, strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_arrays_that_do_not_go_together_are_refused():
  columns = jnp.zeros((1, 1, 8, 128)), jnp.zeros((1, 1, 8, 256))
  for query, key in (columns, columns[::-1]):
    with pytest.raises(ValueError, match="must go together"):
      short_attention((query, key, query), None, query.shape[3], True)
    with pytest.raises(ValueError, match="must go together"):
      keys = (key[:, :, :4],) * 2
      short_attention((query, *keys), None, 128, True)
    with pytest.raises(ValueError, match="must go together"):
      short_attention((query, key), None, query.shape[3], True)
    with pytest.raises(ValueError, match="must go together"):
      short_attention((query,), None, query.shape[3], True)
    with pytest.raises(ValueError, match="cut sequences of 64"):
      short_attention((query, key, key), None, 64, True)
  with pytest.raises(ValueError, match="40 features .* of 2 heads"):
    short_attention_rows(jnp.zeros((40, 40)), 2, 20, True)


def test_rows_that_cut_a_sequence_are_refused():
  columns, rows = jnp.zeros((1, 1, 8, 128)), jnp.zeros((128, 48))
  with pytest.raises(ValueError, match="cut sequences of 96"):
    short_attention((columns,) * 3, None, 96, True)
  # Of 20 tokens two make full tiles, and the last 8 would not be computed.
  with pytest.raises(ValueError, match="not a multiple of 2 sequences of 20"):
    short_attention_rows(rows, 2, 20, True)


@pytest.mark.parametrize("flat", [False, True])
def test_joined_layers_compute_what_each_does(flat):
  class Both(nn.Module):
    joined: bool

    @nn.compact
    def __call__(self, x):
      bias = nn.initializers.normal(1.0)
      layers = [
        Dense((24,), (4, 5), "float32", flat, bias_init=bias, name=name)
        for name in ("query", "key", "value")
      ]
      if self.joined:
        y = join(x, layers)
      else:
        each = [layer(x).reshape(*x.shape[:2], 4, 5) for layer in layers]
        y = jnp.stack(each, 3)
      return y.reshape(*x.shape[:2], 4, 3, 5)

  x = jax.random.normal(jax.random.key(0), (2, 3, 24))
  params = Both(False).init(jax.random.key(1), x)
  jax.tree.map(
    np.testing.assert_array_equal, Both(True).init(jax.random.key(1), x), params
  )
  d_y = jax.random.normal(jax.random.key(2), (2, 3, 4, 3, 5))
  results = []
  for joined in (True, False):
    y, backward = jax.vjp(Both(joined).apply, params, x)
    results.append((y, *backward(d_y)))
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5),
    *results,
  )


def test_dense_starts_as_linen_and_computes_the_same():
  x = jax.random.normal(jax.random.key(0), (2, 3, 24))
  init = nn.initializers.xavier_uniform()
  bias = nn.initializers.normal(1.0)
  linen = nn.DenseGeneral((4, 5), kernel_init=init, bias_init=bias)
  expected, params = linen.init_with_output(jax.random.key(1), x)
  for flat in (False, True):
    dense = Dense((24,), (4, 5), "float32", flat, bias_init=bias)
    actual, ours = dense.init_with_output(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, ours, params)
    np.testing.assert_allclose(
      actual.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
  "axes,shape,columns",
  [(1, (24, 3, 8), False), (2, (3, 8, 24), False), (2, (3, 8, 24), True)],
)
def test_a_kernel_gradient_as_a_matrix_equals_plain_numpy(axes, shape, columns):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (4, 5, *shape[:axes]))
  kernel = jax.random.normal(keys[1], shape)
  d_y = jax.random.normal(keys[2], (4, 5, *shape[axes:]))
  y, backward = jax.vjp(lambda *a: product(*a, axes, columns), x, kernel)
  actual = (y, *backward(d_y))
  x, kernel, d_y = (np.asarray(a, np.float64) for a in (x, kernel, d_y))
  if axes == 1:
    d_x, d_kernel = "blhs,dhs->bld", "bld,blhs->dhs"
  else:
    d_x, d_kernel = "bld,hsd->blhs", "blhs,bld->hsd"
  expected = (
    np.tensordot(x, kernel, axes),
    np.einsum(d_x, d_y, kernel),
    np.einsum(d_kernel, x, d_y),
  )
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize(
  "dtype,tolerance", [("float32", 1e-5), ("bfloat16", 0.02)]
)
def test_a_product_of_gelu_equals_that_of_torch(dtype, tolerance):
  keys = jax.random.split(jax.random.key(0), 3)
  shapes = (4, 5, 24), (24, 8), (4, 5, 8)
  x, kernel, d_y = (
    jax.random.normal(key, shape).astype(dtype)
    for key, shape in zip(keys, shapes, strict=True)
  )
  y, backward = jax.vjp(gelu_product, x, kernel)
  actual = (y, *backward(d_y))
  x, kernel, d_y = (
    torch.tensor(np.asarray(a, np.float32), requires_grad=True)
    for a in (x, kernel, d_y)
  )
  expected = torch.nn.functional.gelu(x, approximate="tanh") @ kernel
  expected.backward(d_y)
  for a, e in zip(actual, (expected, x.grad, kernel.grad), strict=True):
    assert a.dtype == dtype
    e = e.detach().numpy()
    scale = np.abs(e).max()
    np.testing.assert_allclose(a.astype("float32"), e, atol=tolerance * scale)


def test_a_bias_gradient_in_bfloat16_is_summed_in_float32():
  shape = (64, 256, 3)
  d_x = jax.random.uniform(jax.random.key(0), shape).astype(jnp.bfloat16)
  bias = jnp.zeros(3, jnp.bfloat16)
  _, vjp = jax.vjp(lambda b: add_bias(jnp.zeros(shape, jnp.bfloat16), b), bias)
  wanted = np.asarray(d_x, np.float64).sum((0, 1))
  half_a_step = wanted * 2.0**-9  # Of bfloat16's eight digits.
  assert (np.abs(np.float64(vjp(d_x)[0]) - wanted) <= half_a_step).all()
