"""The operations we count are those that XLA counts."""

import types

import jax
from model_cases import abstract_params, example_inputs, model_config
import numpy as np
import pytest

from big_siglip.models import flops, SigLIP

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
