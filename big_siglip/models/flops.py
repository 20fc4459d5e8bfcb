"""How many floating-point operations a model needs, and what chips offer."""

import dataclasses
from typing import Any

import jax

from big_siglip.config import has_image_tower, is_halved, patch_lengths
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


def flops_per_step(config: Any, patches: int | None = None) -> float:
  """Returns the FLOPs of a training step, without recomputation.

  Args:
    config: the whole config.
    patches: of an image; None: as many as it has, and where that is drawn the
      mean of all.
  """
  image_tower = has_image_tower(config)
  each = [
    examples
    * flops_per_example(config.model, image_tower=image_tower, patches=length)
    for examples, length in drawn_steps(config, patches)
  ]
  return 3 * sum(each) / len(each)


def drawn_steps(
  config: Any, patches: int | None = None
) -> list[tuple[int, int | None]]:
  """Returns (examples that are trained, patches) of each step, all as likely.

  Args:
    config: the whole config.
    patches: of an image, as many in each step; None: those of `config`. Where
      none are drawn they are None.
  """
  if not (config.model.image.max_patches and has_image_tower(config)):
    return [(config.batch_size, patches)]
  return [
    (config.batch_size // (2 if is_halved(config, length) else 1), length)
    for length in ((patches,) if patches else patch_lengths(config))
  ]


def flops_per_example(
  model_config: Any, *, image_tower: bool = True, patches: int | None = None
) -> float:
  """Returns the FLOPs of one image-text pair's forward pass.

  Counts the matrix products of both towers (two operations for each
  multiply-add), as model FLOPs utilisation (arXiv:2204.02311, appendix B) wants
  it: no recomputation. A training step is three times that.

  Args:
    model_config: `config.model`.
    image_tower: False: the images' embeddings were made before.
    patches: of an image; None: as many as the model sees.
  """
  patches = patches or num_patches(model_config.image)
  image, _, text, length = _towers(model_config, patches)
  embed_dim = model_config.embed_dim or image.width
  total = _encoder_flops(text, length)
  total += _pool_flops(text, length, model_config.text)
  total += 2 * text.width * embed_dim * model_config.text.head
  if image_tower:
    total += 2 * image.width * embed_dim * model_config.image.head
    total += image_flops(model_config.image, patches)
  return float(total)


def num_patches(image: Any) -> int:
  """Returns how many patches a model sees of an image, `config.model.image`."""
  return image.max_patches or sizes.grid_side(image) ** 2


def image_flops(config: Any, patches: int) -> float:
  """Returns the FLOPs of an image's forward pass, without a projection.

  Args:
    config: `config.model.image`.
    patches: of the image, which may be more or fewer than the model's.
  """
  size = sizes.resolve_image(config)
  tokens = patches + (config.pooling == "cls")
  total = 2 * patches * 3 * (size.patch_size or 0) ** 2 * size.width
  total += _encoder_flops(size, tokens)
  return float(total + _pool_flops(size, tokens, config))


def decoder_flops_per_example(
  decoder: Decoder,
  texts: int,
  patches: int,
  width: int,
  *,
  logits: bool = True,
) -> float:
  """Returns the FLOPs of a decoder's forward pass over all texts of an image.

  All tokens count, and all of their logits: a loss that leaves out what has no
  target needs less.

  Args:
    decoder: writes them.
    texts: of each image.
    patches: that it looks at.
    width: of these.
    logits: whether they count.
  """
  size, tokens = decoder.size, texts * decoder.length
  block = _encoder_flops(dataclasses.replace(size, depth=1), decoder.length)
  query_and_out = 2 * tokens * 2 * size.width**2
  key_and_value = 2 * patches * 2 * width * size.width
  looking = 2 * 2 * tokens * patches * size.width
  cross = query_and_out + key_and_value + looking
  total = size.depth * (texts * block + cross)
  return float(total + logits * 2 * tokens * size.width * decoder.vocab_size)


def _towers(model_config: Any, patches: int):
  """Returns the image tower's size and tokens, and the text tower's."""
  image = sizes.resolve_image(model_config.image)
  text = sizes.resolve_text(model_config.text)
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
