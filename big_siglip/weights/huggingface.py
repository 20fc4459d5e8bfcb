"""Names and configs of SigLIP in Hugging Face transformers.

`SiglipModel`, for SigLIP and the SigLIP 2 models of one resolution alike
(models/siglip/modeling_siglip.py); `Siglip2Model` for NaFlex models, whose
patches go through a linear map (models/siglip2/modeling_siglip2.py).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from big_siglip.errors import UserError
from big_siglip.schema import sizes
from big_siglip.weights import rules as r
from big_siglip.weights.huggingface_config import FIXED
from big_siglip.weights.names import Naming

NAMING = Naming(
  image="vision_model.",
  image_sign="embeddings.patch_embedding.weight",
  text="text_model.",
  text_signs=("embeddings.", "encoder.", "final_layer_norm.", "head."),
  scale="logit_scale",
  bias="logit_bias",
)


def rules(model: Any) -> list[r.Rule]:
  """Returns the table of a `config.model`."""
  return list(_rules(model))


def _rules(model: Any) -> Iterator[r.Rule]:
  yield from _image_rules(model.image)
  if sizes.has_text_tower(model):
    yield from _text_rules(model.text)
    yield r.rule("logit_scale", "logit_scale", r.LEADING)
    yield r.rule("logit_bias", "logit_bias", r.LEADING)


def _image_rules(image: Any) -> Iterator[r.Rule]:
  theirs = "vision_model.embeddings"
  layout = r.linear(3) if image.max_patches else r.CONV
  yield r.rule(
    f"{theirs}.patch_embedding.weight", "image/patch_embedding/kernel", layout
  )
  yield r.rule(f"{theirs}.patch_embedding.bias", "image/patch_embedding/bias")
  yield r.rule(
    f"{theirs}.position_embedding.weight", "image/position_embedding"
  )
  depth = sizes.resolve_image(image).depth
  yield from _encoder("vision_model", "image", depth, "post_layernorm")
  if image.pooling == "none":  # As in language models.
    return
  head = "vision_model.head"
  yield r.rule(f"{head}.probe", "image/pool/probe")
  names = ("query", "key", "value")
  fused = [f"image/pool/attention/{name}" for name in names]
  yield r.Rule(
    f"{head}.attention.in_proj_weight",
    tuple(f"{path}/kernel" for path in fused),
    r.linear(1),
  )
  yield r.Rule(
    f"{head}.attention.in_proj_bias",
    tuple(f"{path}/bias" for path in fused),
    r.FLAT,
  )
  yield from _linear(
    f"{head}.attention.out_proj", "image/pool/attention/out", inputs=2
  )
  yield from _norm(f"{head}.layernorm", "image/pool/norm")
  yield from _mlp(f"{head}.mlp", "image/pool/mlp")


def _text_rules(text: Any) -> Iterator[r.Rule]:
  theirs = "text_model.embeddings"
  yield r.rule(
    f"{theirs}.token_embedding.weight", "text/token_embedding/embedding"
  )
  yield r.rule(f"{theirs}.position_embedding.weight", "text/position_embedding")
  depth = sizes.resolve_text(text).depth
  yield from _encoder("text_model", "text", depth, "final_layer_norm")
  if text.head:
    yield from _linear("text_model.head", "text/head")


def identity_head(model: Any) -> r.Tensors:
  """Yields the arrays of a text head that changes nothing.

  For text towers without one (So400m/16-i18n): transformers always has it.
  """
  if not model.text.head:
    width = sizes.resolve_text(model.text).width
    yield (
      "text_model.head.weight",
      (width, width),
      lambda: np.eye(width, dtype=np.float32),
    )
    yield (
      "text_model.head.bias",
      (width,),
      lambda: np.zeros(width, np.float32),
    )


def _encoder(theirs, ours, depth, final_norm) -> Iterator[r.Rule]:
  for index in range(depth):
    layer = f"{theirs}.encoder.layers.{index}"
    block = f"{ours}/encoder/block_{index}"
    yield from _norm(f"{layer}.layer_norm1", f"{block}/attention_norm")
    for short, name in (("q", "query"), ("k", "key"), ("v", "value")):
      yield from _linear(
        f"{layer}.self_attn.{short}_proj", f"{block}/attention/{name}"
      )
    yield from _linear(
      f"{layer}.self_attn.out_proj", f"{block}/attention/out", inputs=2
    )
    yield from _norm(f"{layer}.layer_norm2", f"{block}/mlp_norm")
    yield from _mlp(f"{layer}.mlp", f"{block}/mlp")
  yield from _norm(f"{theirs}.{final_norm}", f"{ours}/encoder/norm")


def _linear(theirs, ours, inputs=1) -> Iterator[r.Rule]:
  yield r.rule(f"{theirs}.weight", f"{ours}/kernel", r.linear(inputs))
  yield r.rule(f"{theirs}.bias", f"{ours}/bias", r.FLAT)


def _norm(theirs, ours) -> Iterator[r.Rule]:
  yield r.rule(f"{theirs}.weight", f"{ours}/scale")
  yield r.rule(f"{theirs}.bias", f"{ours}/bias")


def _mlp(theirs, ours) -> Iterator[r.Rule]:
  yield from _linear(f"{theirs}.fc1", f"{ours}/up")
  yield from _linear(f"{theirs}.fc2", f"{ours}/down")


def to_config(model: Any) -> dict[str, Any]:
  """Returns the config.json of a `config.model`.

  Raises:
    UserError: transformers has no such model.
  """
  image, text = sizes.resolve_image(model.image), sizes.resolve_text(model.text)
  for field, value, wanted in (
    ("image.pooling", model.image.pooling, "map"),
    ("image.head", model.image.head, False),
    ("text.pooling", model.text.pooling, "last"),
  ):
    if value != wanted:
      raise UserError(
        f"config.model.{field}={value!r}: SiglipModel of transformers knows "
        f"{wanted!r} alone"
      )
  family = "siglip2" if model.image.max_patches else "siglip"
  if model.image.max_patches:
    seen = {"num_patches": sizes.grid_side(model.image) ** 2}
  else:
    seen = {"image_size": model.image.image_size}

  def section(kind: str, size: sizes.TowerSize) -> dict[str, Any]:
    return {
      "model_type": kind,
      "hidden_size": size.width,
      "intermediate_size": size.mlp_dim,
      "num_hidden_layers": size.depth,
      "num_attention_heads": size.num_heads,
      "hidden_act": FIXED["hidden_act"],
      "layer_norm_eps": FIXED["layer_norm_eps"],
    }

  return {
    "architectures": [f"{family.capitalize()}Model"],
    "model_type": family,
    "text_config": {
      **section(f"{family}_text_model", text),
      "vocab_size": model.text.vocab_size,
      "max_position_embeddings": model.text.length,
      "projection_size": model.embed_dim or image.width,
      # Nobody asks for them, and its defaults lie beyond small vocabularies.
      "bos_token_id": None,
      "eos_token_id": None,
    },
    "vision_config": {
      **section(f"{family}_vision_model", image),
      **seen,
      "patch_size": image.patch_size,
    },
  }
