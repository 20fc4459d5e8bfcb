"""The decoder sees what it may see, and equals attention written plainly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from peers import torch
import pytest

from big_siglip import sharding
from big_siglip.models import restack, transformer
from big_siglip.models.compute import Compute
from big_siglip.models.decoder import Decoder
from big_siglip.schema.sizes import TowerSize

B, T, L, K, C, D, V, HEADS = 2, 3, 6, 5, 24, 16, 40, 2
RNG = np.random.default_rng(0)
TARGETS = RNG.integers(0, V, (B, T, L)).astype(np.int32)
CONTEXT = np.float32(RNG.normal(size=(B, K, C)))
PARALLEL = np.array([[True, False, False], [False, False, True]])


def _decoder(tied=False, **compute):
  size = TowerSize(width=D, depth=2, mlp_dim=32, num_heads=HEADS)
  return Decoder(size, V, L, tied, Compute(**compute))


@functools.cache
def _params(tied=False):
  shapes = jax.eval_shape(
    _decoder(tied).init, jax.random.key(0), TARGETS[:1], CONTEXT[:1]
  )
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: np.float32(0.3 * rng.normal(size=x.shape)), shapes["params"]
  )


def _logits(decoded):
  return decoded.hidden @ decoded.kernel + decoded.bias.reshape(1, 1, 1, -1)


@functools.partial(jax.jit, static_argnames="tied")
def _run(params, targets, context, mask=None, parallel=None, tied=False):
  decoder = _decoder(tied)
  return _logits(
    decoder.apply({"params": params}, targets, context, mask, parallel)
  )


def _plain_attention(p, x, context, causal, mask=None):
  """softmax(q k^T / sqrt(h)) v of [.., L, D], with torch's own attention."""

  def project(name, y):
    kernel, bias = p[name]["kernel"], p[name]["bias"]
    return torch.einsum("...ld,dhe->...hle", y, kernel) + bias[:, None]

  query = project("query", x)
  key, value = project("key", context), project("value", context)
  seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool)
  if causal:
    seen = torch.tril(seen)
  if mask is not None:
    seen = seen & mask
  found = torch.nn.functional.scaled_dot_product_attention(
    query, key, value, attn_mask=seen
  )
  return (
    torch.einsum("...hle,hed->...ld", found, p["out"]["kernel"])
    + (p["out"]["bias"])
  )


def _plain(p, targets, context, mask, parallel):
  """One text of one image."""

  def norm(p, x):
    return torch.nn.functional.layer_norm(
      x, x.shape[-1:], p["scale"], p["bias"], 1e-6
    )

  inputs = torch.cat([torch.zeros(1, dtype=torch.long), targets[:-1]])
  x = p["token_embedding"]["embedding"][inputs]
  if parallel:
    x = p["mask_embedding"].expand(L, D)
  x = x + p["position_embedding"]
  for index in range(2):
    q = p[f"block_{index}"]
    y = norm(q["attention_norm"], x)
    x = x + _plain_attention(q["attention"], y, y, not parallel)
    y = norm(q["cross_attention_norm"], x)
    x = x + _plain_attention(q["cross_attention"], y, context, False, mask)
    y = norm(q["mlp_norm"], x)
    y = y @ q["mlp"]["up"]["kernel"] + q["mlp"]["up"]["bias"]
    y = torch.nn.functional.gelu(y, approximate="tanh")
    x = x + y @ q["mlp"]["down"]["kernel"] + q["mlp"]["down"]["bias"]
  x = norm(p["norm"], x)
  kernel = p["logits"].get("kernel")
  if kernel is None:
    kernel = p["token_embedding"]["embedding"].T
  return x @ kernel + p["logits"]["bias"]


@pytest.mark.torch
@pytest.mark.parametrize("tied", [False, True])
def test_it_equals_torch_in_values_and_gradients(tied):
  params = _params(tied)
  mask = np.array([[True] * K, [True] * (K - 2) + [False] * 2])
  cotangent = np.float32(np.random.default_rng(2).normal(size=(B, T, L, V)))

  def loss(params, context):
    logits = _run(params, TARGETS, context, mask, PARALLEL, tied=tied)
    return (logits * cotangent).sum(), logits

  (_, logits), (d_params, d_context) = jax.value_and_grad(
    loss, (0, 1), has_aux=True
  )(params, CONTEXT)

  def leaf(x):
    return torch.tensor(x, dtype=torch.float64, requires_grad=True)

  theirs, context = jax.tree.map(leaf, params), leaf(CONTEXT)
  rows = [
    _plain(
      theirs,
      torch.tensor(TARGETS[b, t], dtype=torch.long),
      context[b],
      torch.tensor(mask[b]),
      PARALLEL[b, t],
    )
    for b in range(B)
    for t in range(T)
  ]
  wanted = torch.stack(rows).reshape(B, T, L, V)
  np.testing.assert_allclose(
    logits, wanted.detach().numpy(), rtol=1e-5, atol=1e-5
  )
  (wanted * torch.tensor(cotangent)).sum().backward()
  pairs = zip(
    [*jax.tree.leaves(d_params), d_context],
    [*jax.tree.leaves(theirs), context],
    strict=True,
  )
  for gradient, their in pairs:
    want = their.grad.numpy()
    np.testing.assert_allclose(
      gradient, want, rtol=0, atol=2e-6 * max(np.abs(want).max(), 1)
    )


def test_a_token_changes_nothing_before_it_nor_of_other_texts():
  before = _run(_params(), TARGETS, CONTEXT)
  for place in range(L):
    changed = TARGETS.copy()
    changed[1, 2, place] = (changed[1, 2, place] + 1) % V
    after = _run(_params(), changed, CONTEXT)
    same = np.ones((B, T, L), bool)
    same[1, 2, place + 1 :] = False  # Position i is of what stands before i.
    np.testing.assert_array_equal(after[same], before[same])
    if place < L - 1:
      assert not np.array_equal(after[1, 2, place + 1], before[1, 2, place + 1])


def test_what_is_predicted_in_parallel_depends_on_image_and_places_alone():
  before = _run(_params(), TARGETS, CONTEXT, None, PARALLEL)
  others = (TARGETS + 1 + RNG.integers(0, V - 1, TARGETS.shape)) % V
  after = _run(_params(), others.astype(np.int32), CONTEXT, None, PARALLEL)
  np.testing.assert_array_equal(after[PARALLEL], before[PARALLEL])
  assert not np.array_equal(after[~PARALLEL], before[~PARALLEL])
  other_image = _run(_params(), TARGETS, CONTEXT + 1, None, PARALLEL)
  assert not np.array_equal(other_image[PARALLEL], before[PARALLEL])
  # All places see each other: the learned vector of the last moves the first.
  params = dict(_params())
  positions = params["position_embedding"].copy()
  positions[-1] += 1
  moved = _run(
    params | {"position_embedding": positions}, TARGETS, CONTEXT, None, PARALLEL
  )
  first = np.asarray(moved[:, :, 0] != before[:, :, 0]).any(-1)
  np.testing.assert_array_equal(first, PARALLEL)


def test_shared_keys_and_values_equal_those_of_each_text_alone():
  together = _run(_params(), TARGETS, CONTEXT, None, PARALLEL)
  for t in range(T):
    alone = _run(
      _params(), TARGETS[:, t : t + 1], CONTEXT, None, PARALLEL[:, t : t + 1]
    )
    np.testing.assert_allclose(
      together[:, t : t + 1], alone, rtol=1e-5, atol=1e-6
    )
  lowered = _run.lower(_params(), TARGETS, CONTEXT).as_text()
  # Of the image: a key and a value in each of the two blocks.
  assert lowered.count(f"tensor<{B}x{K}x{C}xf32>, tensor<{C}x{HEADS}x") == 4


def test_patches_that_are_not_real_are_not_seen():
  mask = np.array([[True] * K, [True, True, False, False, False]])
  before = _run(_params(), TARGETS, CONTEXT, mask)
  garbage = np.where(mask[..., None], CONTEXT, np.float32(1e9))
  np.testing.assert_array_equal(_run(_params(), TARGETS, garbage, mask), before)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_stacked_blocks_and_recomputation_change_nothing(remat):
  stacked = restack({"words": _params()}, scan=True)["words"]
  decoder = _decoder(scan=True, remat=remat)
  found = jax.jit(decoder.apply)(
    {"params": stacked}, TARGETS, CONTEXT, None, PARALLEL
  )
  wanted = _run(_params(), TARGETS, CONTEXT, None, PARALLEL)
  np.testing.assert_allclose(_logits(found), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("parallel", "wide"), [(None, False), (PARALLEL, False), (PARALLEL, True)]
)
def test_the_kernel_and_slices_change_neither_values_nor_gradients(
  parallel, wide, monkeypatch
):
  if wide:  # Then query, key and value are products of their own.
    monkeypatch.setattr(transformer, "_WIDE", 0)
  mesh = sharding.make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
  split = sharding.batch_sharding(mesh)
  targets, context = np.tile(TARGETS, (4, 1, 1)), np.tile(CONTEXT, (4, 1, 1))
  context = np.float32(context + RNG.normal(size=context.shape))
  if parallel is not None:
    parallel = np.tile(parallel, (4, 1))

  def both(**compute):
    def score(params, context):
      decoder = _decoder(**compute)
      args = targets, context, None, parallel
      return (decoder.apply({"params": params}, *args).hidden ** 3).sum()

    return jax.jit(jax.value_and_grad(score, (0, 1)))(_params(), context)

  wanted = both(backend="xla")
  # Two images of a device are cut in two.
  slices = {"sharding": split, "slice_tokens": 2 * T * L}
  cases = [{"backend": "short", **slices}]
  if parallel is not None and not wide:
    cases += [{"backend": "short"}, {"backend": "xla", **slices}]
    cases += [{"backend": "xla", "remat": "full", "keep_blocks": 1}]
  for compute in cases:
    for (path, x), want in zip(
      jax.tree.leaves_with_path(both(**compute)),
      jax.tree.leaves(wanted),
      strict=True,
    ):
      if "attention']['key']['bias']" in jax.tree_util.keystr(path):
        continue  # The softmax does not feel it: its gradient is rounding.
      scale = np.abs(want).max()
      np.testing.assert_allclose(x, want, atol=5e-6 * scale, err_msg=path)


def test_a_kernel_that_cannot_is_the_towers_matter():
  """A single text of 6 tokens makes no row; K queries as many keys do."""
  for shown in (CONTEXT, np.tile(CONTEXT, (1, 4, 1))[:, : T * L]):
    for texts in (1, T):
      given = TARGETS[:, :texts], shown
      found = _decoder(backend="short").apply({"params": _params()}, *given)
      np.testing.assert_allclose(
        _logits(found), _run(_params(), *given), rtol=1e-5, atol=1e-5
      )


def test_every_large_parameter_has_its_place_on_a_mesh():
  mesh = sharding.make_mesh(2, 2, 2)
  placed = sharding.flatten(sharding.state_sharding({"w": _params()}, mesh))
  specs = {path: tuple(where.spec) for path, where in placed.items()}
  block = "w/block_0/cross_attention"
  assert specs[f"{block}/key/kernel"] == ("fsdp", "tensor", None)
  assert specs[f"{block}/out/kernel"] == ("tensor", None, "fsdp")
  assert specs["w/logits/kernel"] == ("fsdp", "tensor")
  assert specs["w/logits/bias"] == ("tensor",)
  assert specs["w/token_embedding/embedding"] == (("tensor", "fsdp"), None)


def test_the_logits_are_zeros_before_the_first_step():
  params = jax.jit(_decoder().init)(
    jax.random.key(0), TARGETS[:1], CONTEXT[:1]
  )["params"]
  assert params["logits"]["kernel"].shape == (D, V)
  assert not np.any(params["logits"]["kernel"])
  assert params["mask_embedding"].shape == (D,)
  assert params["token_embedding"]["embedding"].shape == (V, D)
  assert jnp.abs(params["mask_embedding"]).max() > 0
  assert "kernel" not in _params(True)["logits"]
