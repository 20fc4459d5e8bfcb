"""The losses equal independent references, in value and in every gradient."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from big_siglip.errors import UserError
from big_siglip.losses import (
  ring_scan,
  ring_sigmoid_loss,
  ring_softmax_loss,
  sigmoid_loss,
  softmax_loss,
)

MESHES = {
  "1": ((1, 1, 1), ("data",)),
  "2": ((2, 1, 1), ("data",)),
  "4": ((4, 1, 1), ("data",)),
  "8": ((8, 1, 1), ("data",)),
  "2x4": ((2, 4, 1), ("data", "fsdp")),
  "2x2x2": ((2, 2, 2), ("data", "fsdp")),
}


# A ring of two is between those of one and of four.
RINGS = [
  pytest.param(name, marks=pytest.mark.slow) if name == "2" else name
  for name in MESHES
]


def make_mesh(shape):
  devices = jax.devices()[: int(np.prod(shape))]
  names = ("data", "fsdp", "tensor")
  types = (AxisType.Auto,) * 3
  return jax.make_mesh(shape, names, axis_types=types, devices=devices)


def make_inputs(n=32, width=24, seed=0, alignment=0.5, scale=10.0, bias=-10.0):
  rng = np.random.default_rng(seed)
  image, noise = rng.normal(size=(2, n, width))
  text = alignment * image + (1 - alignment) * noise
  unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text)]
  return [np.float32(x) for x in (*unit, np.log(scale), bias)]


def float64_reference(image, text, logit_scale, logit_bias):
  """Value and gradients by hand, in float64 numpy."""
  image, text = np.float64(image), np.float64(text)
  n = len(image)
  dots = np.exp(np.float64(logit_scale)) * image @ text.T
  signs = 2 * np.eye(n) - 1
  signed = signs * (dots + np.float64(logit_bias))
  loss = np.logaddexp(0, -signed).sum() / n
  d_logits = -signs / (1 + np.exp(signed)) / n
  d_dots = np.exp(np.float64(logit_scale)) * d_logits
  gradients = (
    d_dots @ text,
    d_dots.T @ image,
    (d_logits * dots).sum(),
    d_logits.sum(),
  )
  return loss, gradients


@functools.cache
def _with_gradients(loss_fn):
  return jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 1, 2, 3)))


def value_and_gradients(loss_fn, inputs):
  return _with_gradients(loss_fn)(*inputs)


def assert_close(actual, expected, tolerance):
  for a, e in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    a, e = np.float64(a), np.float64(e)
    assert np.linalg.norm(a - e) <= tolerance * np.linalg.norm(e)
    # Small elements among large ones carry the rounding of the large ones.
    atol = tolerance * np.abs(e).max()
    np.testing.assert_allclose(a, e, rtol=tolerance, atol=atol)


@pytest.mark.parametrize(
  "scale,bias", [(10.0, -10.0), (1.0, 0.0), (100.0, -15.0)]
)
def test_dense_sigmoid_equals_float64_numpy(scale, bias):
  inputs = make_inputs(scale=scale, bias=bias)
  assert_close(
    value_and_gradients(sigmoid_loss, inputs), float64_reference(*inputs), 1e-5
  )


def test_loss_at_initialization_is_that_of_the_paper():
  # Orthogonal embeddings, t = 10, b = -10 and 512 examples: about 10.02.
  inputs = np.eye(512, 1024), np.eye(512, 1024, 512), np.log(10.0), -10.0
  loss = sigmoid_loss(*map(jnp.float32, inputs))
  np.testing.assert_allclose(loss, 10.02, atol=0.005)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("name", RINGS)
def test_ring_equals_dense_in_value_and_gradients(name, chunk_size):
  shape, axes = MESHES[name]
  mesh = make_mesh(shape)
  inputs = make_inputs()
  sharding = NamedSharding(mesh, P(axes))
  sharded = [*(jax.device_put(x, sharding) for x in inputs[:2]), *inputs[2:]]
  ring = functools.partial(
    ring_sigmoid_loss, mesh=mesh, axes=axes, chunk_size=chunk_size
  )
  expected = value_and_gradients(sigmoid_loss, inputs)
  actual = value_and_gradients(ring, sharded)
  assert_close(actual, expected, 1e-5)
  np.testing.assert_allclose(jax.jit(ring)(*sharded), expected[0], rtol=1e-5)
  assert actual[1][0].sharding.is_equivalent_to(sharding, 2)


def test_ring_scales_gradients_by_the_cotangent():
  mesh, inputs = make_mesh((4, 1, 1)), make_inputs()
  ring = functools.partial(ring_sigmoid_loss, mesh=mesh, axes=("data",))
  plain = value_and_gradients(ring, inputs)
  squared = value_and_gradients(lambda *x: ring(*x) ** 2, inputs)
  expected = jax.tree.map(lambda g: 2 * plain[0] * g, plain[1])
  assert_close(squared[1], expected, 1e-5)


def test_gradient_of_aligned_pairs_survives_a_large_scale():
  # With softplus(x) - x for the positives, their gradient, here about e^-18,
  # would be the difference of two numbers near 1, which float32 rounds to 0.
  image = np.eye(8, 16, dtype=np.float32)
  inputs = image, image, np.float32(np.log(30.0)), np.float32(-12.0)
  _, expected = float64_reference(*inputs)
  for loss_fn in (
    sigmoid_loss,
    functools.partial(
      ring_sigmoid_loss, mesh=make_mesh((2, 1, 1)), axes=("data",)
    ),
  ):
    _, gradients = value_and_gradients(loss_fn, inputs)
    diagonal = np.diagonal(gradients[0])
    np.testing.assert_allclose(diagonal, np.diagonal(expected[0]), rtol=1e-4)
    assert np.all(diagonal != 0)


def test_bfloat16_embeddings_lose_nothing_but_their_own_digits():
  # 64 near-aligned pairs at a large scale. Their float32 values are those of
  # the bfloat16 inputs, so only the gradients' last cast may differ.
  inputs = make_inputs(n=64, width=64, alignment=0.9, scale=30.0, bias=-12.0)
  low = [*(jnp.bfloat16(x) for x in inputs[:2]), *inputs[2:]]
  mesh = make_mesh((4, 1, 1))
  ring = functools.partial(
    ring_sigmoid_loss, mesh=mesh, axes=("data",), chunk_size=8
  )
  expected = float64_reference(*map(np.float64, low))
  for loss_fn in (sigmoid_loss, ring):
    value, gradients = value_and_gradients(loss_fn, low)
    assert [g.dtype for g in gradients] == [x.dtype for x in low]
    assert_close((value, gradients[2:]), (expected[0], expected[1][2:]), 1e-5)
    assert_close(gradients[:2], expected[1][:2], 1e-2)


def compiled_gradient(loss_fn, mesh, n, width=64):
  split = NamedSharding(mesh, P("data"))
  x = jax.ShapeDtypeStruct((n, width), jnp.float32, sharding=split)
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  gradient = jax.grad(loss_fn, argnums=(0, 1, 2, 3))
  shardings = (split, split, None, None)
  return (
    jax.jit(gradient, out_shardings=shardings)
    .lower(x, x, scalar, scalar)
    .compile()
  )


def test_memory_of_the_ring_does_not_grow_with_devices():
  def temporary_bytes(devices, dense):
    mesh = make_mesh((devices, 1, 1))
    ring = functools.partial(ring_sigmoid_loss, mesh=mesh, axes=("data",))
    loss_fn = sigmoid_loss if dense else ring
    compiled = compiled_gradient(loss_fn, mesh, n=256 * devices)
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary_bytes(8, dense=False) <= 1.1 * temporary_bytes(
    2, dense=False
  )
  assert temporary_bytes(8, dense=True) > 2 * temporary_bytes(2, dense=True)


def test_chunks_bound_the_logits_of_a_device():
  mesh = make_mesh((2, 1, 1))

  def temporary_bytes(chunk_size):
    ring = functools.partial(
      ring_sigmoid_loss, mesh=mesh, axes=("data",), chunk_size=chunk_size
    )
    compiled = compiled_gradient(ring, mesh, n=2048)
    return compiled.memory_analysis().temp_size_in_bytes

  whole_block = 4 * 1024 * 1024
  assert temporary_bytes(None) > whole_block
  assert temporary_bytes(64) < whole_block / 2


def test_ring_gathers_nothing():
  mesh = make_mesh((8, 1, 1))
  ring = functools.partial(ring_sigmoid_loss, mesh=mesh, axes=("data",))
  text = compiled_gradient(ring, mesh, n=512).as_text()
  assert "collective-permute" in text
  assert "all-gather" not in text


@pytest.mark.parametrize(
  "n,chunk_size,message",
  [
    (30, None, "batch of 30"),
    (32, 3, "chunk_size=3"),
    (32, 0, "chunk_size=0"),
    (32, -1, "chunk_size=-1"),
  ],
)
def test_ring_refuses_what_does_not_divide(n, chunk_size, message):
  with pytest.raises(UserError, match=message):
    ring_sigmoid_loss(
      *make_inputs(n=n),
      mesh=make_mesh((4, 1, 1)),
      axes=("data",),
      chunk_size=chunk_size,
    )


@pytest.mark.torch
def test_softmax_equals_torch_cross_entropy():
  torch = pytest.importorskip("torch")
  inputs = make_inputs()
  image, text, logit_scale = (
    torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in inputs[:3]
  )
  logits = logit_scale.exp() * image @ text.T
  labels = torch.arange(len(image))
  entropy = torch.nn.functional.cross_entropy
  loss = (entropy(logits, labels) + entropy(logits.T, labels)) / 2
  loss.backward()
  expected = loss.item(), [x.grad.numpy() for x in (image, text, logit_scale)]
  actual = value_and_gradients(softmax_loss, inputs)
  assert_close((actual[0], list(actual[1][:3])), expected, 1e-5)
  assert actual[1][3] == 0


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("name", RINGS)
def test_ring_softmax_equals_dense_in_value_and_gradients(name, chunk_size):
  shape, axes = MESHES[name]
  ring = functools.partial(
    ring_softmax_loss,
    mesh=make_mesh(shape),
    axes=axes,
    chunk_size=chunk_size,
  )
  inputs = make_inputs()
  expected = value_and_gradients(softmax_loss, inputs)
  assert_close(value_and_gradients(ring, inputs), expected, 1e-5)
  np.testing.assert_allclose(jax.jit(ring)(*inputs), expected[0], rtol=1e-5)


def test_ring_softmax_gathers_nothing_and_keeps_its_memory():
  def compiled(devices):
    mesh = make_mesh((devices, 1, 1))
    ring = functools.partial(ring_softmax_loss, mesh=mesh, axes=("data",))
    return compiled_gradient(ring, mesh, n=256 * devices)

  two, eight = compiled(2), compiled(8)
  assert "all-gather" not in eight.as_text()
  memory = [x.memory_analysis().temp_size_in_bytes for x in (two, eight)]
  assert memory[1] <= 1.1 * memory[0]


def all_losses(mesh, axes, **options):
  on_mesh = {"mesh": mesh, "axes": axes, **options}
  return {
    "sigmoid": sigmoid_loss,
    "softmax": softmax_loss,
    "ring_sigmoid": functools.partial(ring_sigmoid_loss, **on_mesh),
    "ring_softmax": functools.partial(ring_softmax_loss, **on_mesh),
  }


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("name", ["1", "8", "2x4"])
def test_statistics_are_those_of_the_whole_matrix(name, chunk_size):
  shape, axes = MESHES[name]
  image, text, scale, bias = inputs = make_inputs()
  logits = np.exp(scale) * np.float64(image) @ text.T + bias
  others = ~np.eye(len(logits), dtype=bool)
  expected = (
    np.diagonal(logits).mean(),
    logits[others].mean(),
    np.where(others, logits, -np.inf).max(axis=1),
  )
  functions = all_losses(make_mesh(shape), axes, chunk_size=chunk_size)
  for function in functions.values():
    plain = value_and_gradients(function, inputs)
    (value, seen), gradients = jax.jit(
      jax.value_and_grad(
        functools.partial(function, statistics=True), (0, 1, 2, 3), True
      )
    )(*inputs)
    # They change neither value nor gradient, also where they are used.
    assert_close((value, gradients), plain, 1e-6)
    alone = jax.jit(functools.partial(function, statistics=True))(*inputs)
    for statistics in (seen, alone[1]):
      seen_all = jax.tree.leaves(statistics)  # Without ids, no duplicates.
      for got, wanted in zip(seen_all, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_statistics_have_no_gradient():
  functions = all_losses(make_mesh((4, 1, 1)), ("data",))
  for function in functions.values():

    def of_statistics(*inputs, function=function):
      loss, statistics = function(*inputs, statistics=True)
      return loss + 3 * statistics.positive + statistics.hardest_negative.sum()

    inputs = make_inputs()
    expected = value_and_gradients(function, inputs)[1]
    assert_close(value_and_gradients(of_statistics, inputs)[1], expected, 1e-6)


def test_statistics_of_a_single_pair_are_finite():
  for function in all_losses(make_mesh((1, 1, 1)), ("data",)).values():
    of_one = jax.jit(functools.partial(function, statistics=True))
    _, statistics = of_one(*make_inputs(n=1))
    for x in jax.tree.leaves(statistics):
      assert np.all(np.isfinite(x))


@pytest.mark.parametrize("name", ["ring_sigmoid", "ring_softmax"])
def test_bfloat16_products_cost_gradients_little(name):
  # Factors of 8 bits are off by 2^-9 at most.
  inputs = make_inputs(n=64, width=64)
  mesh, axes = make_mesh((8, 1, 1)), ("data",)
  exact = all_losses(mesh, axes)[name]
  rounded = all_losses(mesh, axes, dtype="bfloat16")[name]
  expected = value_and_gradients(exact, inputs)
  actual = value_and_gradients(rounded, inputs)
  for a, e in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    assert np.linalg.norm(a - e) <= 0.01 * np.linalg.norm(e)
  assert np.any(actual[1][0] != expected[1][0])
  text = compiled_gradient(rounded, mesh, n=64).as_text()
  assert "bf16[4,64]" in text, "the texts travel in bfloat16"


@pytest.mark.parametrize("name", ["ring_sigmoid", "ring_softmax"])
def test_any_order_of_the_ring_gives_the_same(name, monkeypatch):
  inputs = make_inputs()
  mesh, axes = make_mesh((2, 4, 1)), ("data", "fsdp")
  expected = value_and_gradients(all_losses(mesh, axes)[name[5:]], inputs)
  monkeypatch.setattr(
    ring_scan, "ring_order", lambda mesh, axes: [3, 0, 6, 1, 7, 4, 2, 5]
  )
  actual = value_and_gradients(all_losses(mesh, axes)[name], inputs)
  assert_close(actual, expected, 1e-5)


class Chip(NamedTuple):
  coords: tuple[int, ...]


@pytest.mark.parametrize(
  "sides", [(4, 4, 1), (16, 16, 1), (2, 4, 1), (8, 2, 1), (4, 4, 4), (2, 2, 4)]
)
def test_on_a_grid_every_hop_is_to_a_neighbour(sides):
  places = list(itertools.product(*map(range, sides)))
  chips = np.empty((1, len(places), 1), object)
  shuffled = np.random.default_rng(0).permutation(len(places))
  chips[0, :, 0] = [Chip(places[i]) for i in shuffled]

  class Grid:
    axis_names = ("data", "fsdp", "tensor")
    shape = {"data": 1, "fsdp": len(places), "tensor": 1}
    devices = chips

  order = ring_scan.ring_order(Grid, ("data", "fsdp"))
  assert sorted(order) == list(range(len(places)))
  ring = [chips[0, index, 0].coords for index in order]
  for here, there in itertools.pairwise([*ring, ring[0]]):
    assert sum(abs(a - b) for a, b in zip(here, there, strict=True)) == 1


def test_a_ring_of_other_devices_keeps_their_order():
  mesh = make_mesh((2, 4, 1))
  assert ring_scan.ring_order(mesh, ("data", "fsdp")) == list(range(8))
  assert ring_scan.ring_order(mesh, ("data",)) == [0, 1]


def test_an_unknown_dtype_is_refused():
  for name in ("ring_sigmoid", "ring_softmax"):
    function = all_losses(make_mesh((2, 1, 1)), ("data",), dtype="int8")[name]
    with pytest.raises(UserError, match="dtype='int8': must be one of float32"):
      function(*make_inputs())


def test_one_device_holds_a_large_batch_in_chunks():
  mesh = make_mesh((1, 1, 1))
  n, chunk_size = 8192, 128
  ring = functools.partial(
    ring_sigmoid_loss, mesh=mesh, axes=("data",), chunk_size=chunk_size
  )
  compiled = compiled_gradient(ring, mesh, n=n)
  tile = chunk_size * n * 4
  embeddings = n * 64 * 4
  limit = 6 * tile + 8 * embeddings  # 42 MB; the matrix alone is 268.
  assert compiled.memory_analysis().temp_size_in_bytes < limit


@pytest.mark.parametrize(
  "name", ["sigmoid", "softmax", "ring_sigmoid", "ring_softmax"]
)
def test_a_batch_may_have_more_pairs_than_an_int32_counts(name):
  mesh = make_mesh((8, 1, 1))
  loss = all_losses(mesh, ("data",))[name]
  embeddings = jax.ShapeDtypeStruct((2**17, 8), jnp.float32)
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  value, statistics = jax.eval_shape(
    functools.partial(loss, statistics=True),
    *(embeddings, embeddings, scalar, scalar),
  )
  assert value.shape == statistics.negative.shape == ()
