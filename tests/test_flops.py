"""The operations we count are those that XLA counts."""

import types

import jax
from model_cases import abstract_params, example_inputs, model_config
import numpy as np
import pytest

from big_siglip.models import flops, SigLIP
from big_siglip.models.compute import Compute
from big_siglip.models.decoder import Decoder
from big_siglip.schema.sizes import TowerSize

# Wide enough for matrix products to be almost all of the work.
WIDE = dict(depth=1, width=256, mlp_dim=1024, num_heads=4)

CASES = {
  "SigLIP": (dict(image_size=64), dict(length=32), None),
  "CLIP": (
    dict(image_size=64, pooling="cls", head=True),
    dict(length=32, pooling="cls"),
    1024,
  ),
  "two probes": (dict(image_size=16), dict(length=6, pooling="map"), None),
  "no head": (
    dict(image_size=64, pooling="gap"),
    dict(length=6, pooling="mean", head=False),
    None,
  ),
  "other shapes": (
    # 16 patches of 14 pixels and a border; towers of other depths and widths.
    dict(size="mu/14", image_size=64, drop_border=True, width=512, depth=2),
    dict(length=64, mlp_dim=300, depth=3),
    None,
  ),
}


@pytest.mark.parametrize("name", CASES)
def test_forward_pass_needs_the_operations_that_xla_counts(name):
  image, text, embed_dim = CASES[name]
  # Not scanned: XLA counts the body of a loop once.
  config = model_config(
    {**WIDE, **image}, {**WIDE, **text}, embed_dim=embed_dim, scan=False
  )
  model = SigLIP(config)
  images, texts = example_inputs(config, batch=2)
  params = {"params": abstract_params(model)}
  lowered = jax.jit(model.apply).lower(params, np.float32(images), texts)
  counted = lowered.compile().cost_analysis()["flops"] / 2
  # XLA also counts norms, GELU and softmax: about one operation in a hundred.
  elementwise = counted / flops.flops_per_example(config) - 1
  assert 0.005 < elementwise < 0.015


def test_peak_is_known_for_accelerators_only():
  assert flops.peak_flops(jax.devices("cpu")[0]) is None
  device = types.SimpleNamespace(device_kind="NVIDIA H200")
  assert flops.peak_flops(device) == 989e12


def test_a_decoder_needs_the_operations_that_xla_counts():
  size = TowerSize(width=256, depth=2, mlp_dim=512, num_heads=4)
  decoder = Decoder(size, 300, 16, False, Compute(backend="xla"))
  targets, context = np.zeros((2, 3, 16), np.int32), np.zeros((2, 24, 128))
  params = jax.eval_shape(decoder.init, jax.random.key(0), targets, context)

  def logits(params, context):
    found = decoder.apply(params, targets, context)
    return found.hidden @ found.kernel

  lowered = jax.jit(logits).lower(params, np.float32(context))
  counted = lowered.compile().cost_analysis()["flops"] / 2
  known = flops.decoder_flops_per_example(decoder, 3, 24, 128)
  assert 0.005 < counted / known - 1 < 0.02


def test_a_decoder_of_siglip_2_needs_what_is_counted_by_hand():
  """B/16 at 256 pixels: 10.3 GFLOP a text, and 25.2 of its logits."""
  size = TowerSize(width=768, depth=6, mlp_dim=3072, num_heads=12)
  decoder = Decoder(size, 256_000, 64, False, Compute())
  whole = flops.decoder_flops_per_example(decoder, 1, 256, 768)
  np.testing.assert_allclose(whole, 10.34e9 + 25.17e9, rtol=1e-3)
  # Keys and values of the image are computed once for three texts.
  three = flops.decoder_flops_per_example(decoder, 3, 256, 768)
  saved = 3 * whole - three
  np.testing.assert_allclose(saved, 2 * 6 * 2 * 256 * 2 * 768**2)
