"""Small sections of self-distillation, and batches with crops, for tests."""

import numpy as np

OFF = dict(jitter=0.0, grey=0.0, global_blur=0.0, local_blur=0.0)


def section(**changes):
  """A section of `config.terms`; 16 pixels, patches of 4."""
  from configs import terms

  small = dict(
    local_count=3,
    local_size=8,
    hidden=24,
    bottleneck=12,
    prototypes=40,
    chunk_size=16,
    warmup_steps=4,
    frozen_steps=0,
  )
  return terms.distillation(**{**small, **changes})


def crops(size, seed=5, local_count=3):
  """Random crops of `size` examples."""
  rng = np.random.default_rng(seed)
  return {
    "global_crops": rng.integers(0, 256, (size, 1, 16, 16, 3), np.uint8),
    "local_crops": rng.integers(0, 256, (size, local_count, 8, 8, 3), np.uint8),
  }
