"""How many floating-point operations a model needs, and what chips offer."""

import dataclasses
from typing import Any

import jax

from big_siglip.models.decoder import Decoder
from big_siglip.schema import sizes

# Peak bfloat16 operations a second of one device, by `device_kind`: the chips'
# published sheets. Of GPUs: dense, summed in float32; sheets that give twice as
# much count products with zeros ("with sparsity").
PEAK_FLOPS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "NVIDIA A10": 125e12,
  "NVIDIA A100-PCIE-40GB": 312e12,
  "NVIDIA A100 80GB PCIe": 312e12,
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA B200": 2250e12,
  "NVIDIA GeForce RTX 3090": 71e12,
  "NVIDIA GeForce RTX 4090": 165e12,
  "NVIDIA GeForce RTX 5090": 209e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA H100 NVL": 835e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H200": 989e12,
  "NVIDIA L4": 121e12,
  "NVIDIA L40S": 362e12,
}


def peak_flops(device: jax.Device) -> float | None:
  """Returns the device's peak bfloat16 FLOP/s, or None where unknown."""
  return PEAK_FLOPS.get(device.device_kind)


def flops_per_example(model_config: Any, *, image_tower: bool = True) -> float:
  """Returns the FLOPs of one image-text pair's forward pass.

  Counts the matrix products of both towers (two operations for each
  multiply-add), as model FLOPs utilisation (arXiv:2204.02311, appendix B) wants
  it: no recomputation. A training step is three times that.

  Args:
    model_config: `config.model`.
    image_tower: False: the images' embeddings were made before.
  """
  image, tokens, text, length = _towers(model_config)
  embed_dim = model_config.embed_dim or image.width
  patches = (model_config.image.image_size // image.patch_size) ** 2
  total = _encoder_flops(text, length)
  total += _pool_flops(text, length, model_config.text)
  total += 2 * text.width * embed_dim * model_config.text.head
  if image_tower:
    total += 2 * patches * 3 * (image.patch_size or 0) ** 2 * image.width
    total += _encoder_flops(image, tokens)
    total += _pool_flops(image, tokens, model_config.image)
    total += 2 * image.width * embed_dim * model_config.image.head
  return float(total)


def attention_flops_per_example(
  model_config: Any, *, image_tower: bool = True
) -> float:
  """Returns those of `flops_per_example` between queries, keys and values."""
  image, tokens, text, length = _towers(model_config)
  total = text.depth * _attention_flops(text, length)
  if image_tower:
    total += image.depth * _attention_flops(image, tokens)
  return float(total)


def decoder_flops_per_example(
  decoder: Decoder, texts: int, patches: int, width: int
) -> float:
  """Returns the FLOPs of a decoder's forward pass over all texts of an image.

  All tokens count, and all of their logits: a loss that leaves out what has no
  target needs less.

  Args:
    decoder: writes them.
    texts: of each image.
    patches: that it looks at.
    width: of these.
  """
  size, tokens = decoder.size, texts * decoder.length
  block = _encoder_flops(dataclasses.replace(size, depth=1), decoder.length)
  query_and_out = 2 * tokens * 2 * size.width**2
  key_and_value = 2 * patches * 2 * width * size.width
  looking = 2 * 2 * tokens * patches * size.width
  cross = query_and_out + key_and_value + looking
  logits = 2 * tokens * size.width * decoder.vocab_size
  return float(size.depth * (texts * block + cross) + logits)


def _towers(model_config: Any):
  """Returns the image tower's size and tokens, and the text tower's."""
  image = sizes.resolve_image(model_config.image)
  text = sizes.resolve_text(model_config.text)
  patches = (model_config.image.image_size // image.patch_size) ** 2
  tokens = patches + (model_config.image.pooling == "cls")
  length = model_config.text.length + (model_config.text.pooling == "cls")
  return image, tokens, text, length


def _attention_flops(size: sizes.TowerSize, tokens: int) -> int:
  """Of one block: queries with keys, then weights with values."""
  return 2 * 2 * tokens**2 * size.width


def _encoder_flops(size: sizes.TowerSize, tokens: int) -> int:
  projections = 4 * size.width**2 + 2 * size.width * size.mlp_dim
  attention = _attention_flops(size, tokens)
  return size.depth * (2 * tokens * projections + attention)


def _pool_flops(size: sizes.TowerSize, tokens: int, config: Any) -> int:
  if config.pooling != "map":
    return 0
  keys_and_values = 2 * tokens * size.width**2
  probe = 2 * size.width**2 + 2 * size.width * size.mlp_dim
  return 2 * (keys_and_values + probe + 2 * tokens * size.width)
