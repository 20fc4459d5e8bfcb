"""Attention equals linen's; scan and remat change no value."""

import dataclasses
import re

from flax import linen as nn
import jax
import jax.numpy as jnp
from model_cases import example_inputs, model_config, random_params
import numpy as np
import pytest

from big_siglip import sharding
from big_siglip.models import REMAT_POLICIES, SigLIP
from big_siglip.models.compute import Compute
from big_siglip.models.pooling import pool
from big_siglip.models.slices import slice_count
from big_siglip.models.transformer import Attention, Encoder
from big_siglip.plan import topologies
from big_siglip.plan.operations import executed_flops
from big_siglip.schema import sizes, words


def test_attention_equals_linen_in_initialization_and_value():
  x = jax.random.normal(jax.random.key(0), (2, 5, 24))
  linen = nn.MultiHeadDotProductAttention(
    num_heads=3, kernel_init=nn.initializers.xavier_uniform()
  )
  expected, params = jax.jit(linen.init_with_output)(jax.random.key(1), x)
  ours_of = jax.jit(Attention(3, Compute()).init_with_output)
  actual, ours = ours_of(jax.random.key(1), x, x)
  jax.tree.map(np.testing.assert_array_equal, ours, params)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def unstack(params):
  """The parameters of scanned blocks as those of single ones."""
  params = dict(params)
  for tower in ("image", "text"):
    encoder = dict(params[tower]["encoder"])
    blocks = encoder.pop("blocks")
    depth = len(blocks["mlp_norm"]["scale"])
    for index in range(depth):
      encoder[f"block_{index}"] = jax.tree.map(
        lambda x, index=index: x[index], blocks
      )
    params[tower] = {**params[tower], "encoder": encoder}
  return params


def test_scanned_blocks_equal_single_ones():
  deep = dict(depth=3)
  config = model_config(deep, deep)
  params = random_params(SigLIP(config))
  inputs = example_inputs(config)
  expected = jax.jit(SigLIP(config).apply)({"params": params}, *inputs)
  single = SigLIP(model_config(deep, deep, scan=False))
  actual = jax.jit(single.apply)({"params": unstack(params)}, *inputs)
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, atol=1e-5)


def compiled_gradient(scan, remat):
  deep = dict(depth=3)
  model = SigLIP(model_config(deep, remat=remat, scan=scan))

  def score(params, image):  # One tower: the other's blocks are the same.
    embedding, *_ = model.apply({"params": params}, image, None)
    return embedding[:, 0].sum()

  params = random_params(SigLIP(model_config(deep)))
  image, _ = example_inputs(model.config, batch=32)
  arguments = (params if scan else unstack(params), image)
  compiled = jax.jit(jax.grad(score)).lower(*arguments).compile()
  memory = compiled.memory_analysis().temp_size_in_bytes
  return compiled(*arguments), memory


@pytest.mark.parametrize("scan", [True, False])
def test_remat_changes_memory_and_not_gradients(scan):
  assert set(words.REMATS) == set(REMAT_POLICIES)
  names = words.REMATS if scan else ("none", "full")
  results = {name: compiled_gradient(scan, name) for name in names}
  expected, memory_of_all = results.pop("none")
  for gradients, memory in results.values():
    jax.tree.map(
      lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-5),
      gradients,
      expected,
    )
    if scan:
      assert memory < memory_of_all
  if scan:
    assert results["full"][1] < results["projections"][1]


@pytest.mark.parametrize("scan", [True, False])
def test_blocks_that_keep_their_activations_compute_nothing_again(scan):
  """The last ones; the names of parameters and what is learned stay."""
  split = sharding.batch_sharding(sharding.make_mesh(fsdp=4))
  x = jax.random.normal(jax.random.key(0), (32, 6, 24))

  def encoder(keep, remat="full", slice_tokens=None):
    compute = Compute("float32", "xla", remat, scan, split, slice_tokens, keep)
    return Encoder(3, 3, 40, compute)

  params = jax.jit(encoder(0).init)(jax.random.key(1), x[:1])

  def run(*how):
    def score(params, x):
      y = encoder(*how).apply(params, x)
      return (y * jnp.arange(y.size).reshape(y.shape) / y.size).sum()

    same = jax.eval_shape(encoder(*how).init, jax.random.key(1), x[:1])
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, same)
    traced = jax.jit(jax.value_and_grad(score, (0, 1))).trace(params, x)
    return traced.lower().compile()(params, x), executed_flops(traced)

  expected, most = run(0)
  _, least = run(0, "none")
  for how, again in (
    ((1,), 2),
    ((2,), 1),
    ((3,), 0),
    ((9,), 0),
    ((2, "full", 12), 1),
  ):
    found, executed = run(*how)
    # A small element carries the rounding of what it is a sum of, 192 tokens.
    jax.tree.map(
      lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=2e-6),
      found,
      expected,
    )
    assert executed == pytest.approx(least + again / 3 * (most - least))
  assert most > least


@pytest.mark.parametrize("how", [{}, {"slice_tokens": 12, "keep_blocks": 1}])
def test_a_pass_apart_computes_the_same(how):
  split = sharding.batch_sharding(sharding.make_mesh(fsdp=4))
  x = jax.random.normal(jax.random.key(0), (32, 6, 24))
  compute = Compute("float32", "xla", "full", True, split, **how)
  plain, apart = (
    Encoder(3, 3, 40, dataclasses.replace(compute, apart=apart))
    for apart in (False, True)
  )
  params = jax.jit(plain.init)(jax.random.key(1), x[:1])
  same = jax.jit(apart.init)(jax.random.key(1), x[:1])
  jax.tree.map(np.testing.assert_array_equal, same, params)

  def run(encoder):
    def score(params, x):
      y = encoder.apply(params, x)
      return (y * jnp.arange(y.size).reshape(y.shape) / y.size).sum()

    return jax.jit(jax.value_and_grad(score, (0, 1)))(params, x)

  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-6),
    run(apart),
    run(plain),
  )


@pytest.mark.slow
@pytest.mark.parametrize("apart", [False, True])
def test_two_passes_of_one_shape_start_from_no_zeros(apart):
  """By the TPU compiler, which writes them where both loops share them."""
  pytest.importorskip("libtpu")
  devices, _ = topologies.describe("v5e:1x1")
  split = sharding.batch_sharding(sharding.make_mesh(devices=devices))
  compute = Compute("bfloat16", "xla", "full", True, split)
  first, second = (
    Encoder(3, 2, 512, dataclasses.replace(compute, apart=each), norm=False)
    for each in (False, apart)
  )
  x = jax.ShapeDtypeStruct((8, 128, 128), jnp.bfloat16, sharding=split)
  one = jnp.zeros((1, 128, 128), jnp.bfloat16)
  shapes = jax.eval_shape(first.init, jax.random.key(0), one)
  params = sharding.placed(shapes, split.mesh)

  def score(params, x, y):
    first_seen, second_seen = first.apply(params, x), second.apply(params, y)
    return (first_seen * second_seen).astype(jnp.float32).sum()

  text = jax.jit(jax.grad(score)).trace(params, x, x).lower().compile()
  zeros = re.findall(r"= bf16\[3,8,128,128\]\S* broadcast", text.as_text())
  assert bool(zeros) != apart


@pytest.mark.parametrize(
  "rows,length,limit,count",
  [
    (128, 256, 8_192, 4),
    (128, 64, 8_192, 1),
    (6, 10, 45, 2),  # 3 rows at once, though 4 would fit: 4 do not divide 6.
    (7, 10, 45, 7),
    (5, 100, 8, 5),  # A row is never cut.
  ],
)
def test_slices_are_as_few_as_the_limit_allows(rows, length, limit, count):
  assert slice_count(rows, length, limit) == count


@pytest.mark.parametrize("scan", [True, False])
def test_slices_of_a_block_change_no_value_and_no_gradient(scan):
  """Four rows on each of eight devices: two slices of two rows."""
  split = sharding.batch_sharding(sharding.make_mesh(fsdp=4))
  x = jax.random.normal(jax.random.key(0), (32, 6, 24))
  compute = Compute(backend="xla", remat="full", scan=scan, sharding=split)
  whole, sliced = (
    Encoder(2, 3, 40, dataclasses.replace(compute, slice_tokens=n))
    for n in (None, 12)
  )
  params = jax.jit(whole.init)(jax.random.key(1), x[:1])
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(
    jnp.shape, jax.eval_shape(sliced.init, jax.random.key(1), x[:1])
  )

  def run(encoder):
    def score(params, x):
      y = encoder.apply(params, x)
      return (y * jnp.arange(y.size).reshape(y.shape) / y.size).sum(), y

    step = jax.jit(jax.grad(score, (0, 1), has_aux=True))
    text = step.lower(params, x).as_text()
    return step(params, x), text.count("optimization_barrier")

  expected, before = run(whole)
  actual, after = run(sliced)
  assert after > before  # They are sliced.
  # A small element carries the rounding of what it is a sum of, 192 tokens.
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=2e-6),
    actual,
    expected,
  )


@pytest.mark.parametrize("scan,slice_tokens", [(True, None), (False, 12)])
def test_what_a_mask_hides_changes_nothing_by_exactly_0(scan, slice_tokens):
  """In two slices a device, too; and as if the padding were not there."""
  split = sharding.batch_sharding(sharding.make_mesh(fsdp=4))
  compute = Compute(scan=scan, sharding=split, slice_tokens=slice_tokens)
  encoder = Encoder(2, 3, 40, compute)
  x = jax.random.normal(jax.random.key(0), (32, 6, 24))
  mask = jnp.arange(6)[None] < 1 + jnp.arange(32)[:, None] % 6
  params = jax.jit(encoder.init)(jax.random.key(1), x[:1])
  run = jax.jit(
    lambda x: pool(encoder.apply(params, x, mask), "mean", None, compute, mask)
  )
  garbage = jnp.where(mask[..., None], x, 1e9)
  masked = run(x)
  np.testing.assert_array_equal(run(garbage), masked)
  three = np.flatnonzero(mask.sum(axis=1) == 3)
  plain = jax.jit(encoder.clone(compute=Compute(scan=scan)).apply)
  short = plain(params, x[three, :3])
  np.testing.assert_allclose(
    masked[three], short.mean(axis=1), rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize("pooling", ["map", "last", "mean"])
def test_a_pool_takes_real_tokens_alone(pooling):
  size = sizes.TowerSize(24, 1, 40, 3)

  class Tower(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
      return pool(x, pooling, size, Compute(), mask)

  x = jax.random.normal(jax.random.key(0), (4, 6, 24))
  mask = jnp.arange(6)[None] < jnp.array([6, 4, 4, 1])[:, None]
  params = jax.jit(Tower().init)(jax.random.key(1), x, mask)
  apply = jax.jit(Tower().apply)
  pooled = apply(params, jnp.where(mask[..., None], x, jnp.inf), mask)
  for row, length in enumerate((6, 4, 4, 1)):
    alone = apply(params, x[row : row + 1, :length], None)
    np.testing.assert_allclose(pooled[row], alone[0], rtol=1e-5, atol=1e-6)


def test_a_causal_encoder_sees_nothing_that_comes_later():
  encoder = Encoder(2, 3, 40, Compute(), causal=True)
  x = jax.random.normal(jax.random.key(0), (2, 6, 24))
  params = jax.jit(encoder.init)(jax.random.key(1), x)
  run = jax.jit(lambda x: encoder.apply(params, x))
  later = run(x.at[:, 4:].multiply(-2.0))
  np.testing.assert_array_equal(later[:, :4], run(x)[:, :4])
  assert np.all(np.abs(later[:, 4:] - run(x)[:, 4:]).max(axis=-1) > 1e-3)
