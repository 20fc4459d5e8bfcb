"""Names and configs of SigLIP in Hugging Face transformers.

`SiglipModel`, for SigLIP and the SigLIP 2 models of one resolution alike
(models/siglip/modeling_siglip.py).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from big_siglip.errors import UserError
from big_siglip.schema import sizes
from big_siglip.weights import rules as r
from big_siglip.weights.model_config import (
  image_size_of,
  known_heads,
  make_model_config,
)

# What transformers assumes where config.json is silent.
_VISION = {
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "image_size": 224,
  "patch_size": 16,
}
_TEXT = {
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "vocab_size": 32_000,
  "max_position_embeddings": 64,
}
# Each layer is a dozen names to look for.
_MOST = {"num_hidden_layers": 1_000}
# What we compute without asking.
_FIXED = {
  "hidden_act": "gelu_pytorch_tanh",
  "layer_norm_eps": 1e-6,
  "attention_dropout": 0.0,
  "num_channels": 3,
  "vision_use_head": True,
}


def rules(model: Any) -> list[r.Rule]:
  """Returns the table of a `config.model`."""
  return list(_rules(model))


def _rules(model: Any) -> Iterator[r.Rule]:
  image, text = sizes.resolve_image(model.image), sizes.resolve_text(model.text)
  theirs = "vision_model.embeddings"
  yield r.rule(
    f"{theirs}.patch_embedding.weight", "image/patch_embedding/kernel", r.CONV
  )
  yield r.rule(f"{theirs}.patch_embedding.bias", "image/patch_embedding/bias")
  yield r.rule(
    f"{theirs}.position_embedding.weight", "image/position_embedding"
  )
  yield from _encoder("vision_model", "image", image.depth, "post_layernorm")
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
  theirs = "text_model.embeddings"
  yield r.rule(
    f"{theirs}.token_embedding.weight", "text/token_embedding/embedding"
  )
  yield r.rule(f"{theirs}.position_embedding.weight", "text/position_embedding")
  yield from _encoder("text_model", "text", text.depth, "final_layer_norm")
  if model.text.head:
    yield from _linear("text_model.head", "text/head")
  yield r.rule("logit_scale", "logit_scale", r.LEADING)
  yield r.rule("logit_bias", "logit_bias", r.LEADING)


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


def model_config(config: Mapping[str, Any], path: str) -> Any:
  """Returns our `config.model` of a config.json.

  Raises:
    UserError: another architecture, or a setting that we have no place for.
  """
  kind = config.get("model_type")
  if kind != "siglip":
    known = "; NaFlex models are not supported" if kind == "siglip2" else ""
    raise UserError(f"{path}: model_type={kind!r}: must be 'siglip'{known}")
  vision = _section(config, "vision_config", _VISION, path)
  text = _section(config, "text_config", _TEXT, path)
  for section in (vision, text):
    for field, value in _FIXED.items():
      if section.get(field, value) != value:
        raise UserError(
          f"{path}: {field}={section[field]!r}: must be {value!r}"
        )
  return make_model_config(
    image=_size(vision, vision["patch_size"]),
    image_size=vision["image_size"],
    text=_size(text),
    vocab_size=text["vocab_size"],
    length=text["max_position_embeddings"],
    embed_dim=text.get("projection_size", vision["hidden_size"]),
  )


def _section(config, name, defaults, path) -> dict[str, Any]:
  """Returns a part of config.json, with whole numbers where they must be."""
  given = config.get(name, {})
  if not isinstance(given, Mapping):
    raise UserError(f"{path}: {name} must be a JSON object")
  section = {**defaults, **given}
  if section.get("projection_size") is None:
    section.pop("projection_size", None)
  for field in (*defaults, "projection_size"):
    value = section.get(field, 1)
    if type(value) is not int or not 1 <= value <= _MOST.get(field, 10**9):
      raise UserError(
        f"{path}: {name}.{field}={value!r}: must be a whole number, "
        f"1 to {_MOST.get(field, 10**9):,}"
      )
  return section


def _size(section, patch_size=None) -> sizes.TowerSize:
  return sizes.TowerSize(
    width=section["hidden_size"],
    depth=section["num_hidden_layers"],
    mlp_dim=section["intermediate_size"],
    num_heads=section["num_attention_heads"],
    patch_size=patch_size,
  )


def infer_config(shapes: Mapping[str, tuple[int, ...]], path: str) -> Any:
  """Returns our `config.model` of the arrays' shapes, without a config.json.

  Raises:
    UserError: the shapes are of no known tower: how many heads share the width
      cannot be seen.
  """
  try:
    output, _, patch, _ = shapes[
      "vision_model.embeddings.patch_embedding.weight"
    ]
    tokens = shapes["vision_model.embeddings.position_embedding.weight"][0]
    vocab, width = shapes["text_model.embeddings.token_embedding.weight"]
    length = shapes["text_model.embeddings.position_embedding.weight"][0]
    embed_dim = shapes["text_model.head.weight"][0]
    mlp_dims = [
      shapes[f"{tower}.encoder.layers.0.mlp.fc1.weight"][0]
      for tower in ("vision_model", "text_model")
    ]
  except (KeyError, ValueError, IndexError) as error:
    raise UserError(f"{path}: holds no SigLIP model ({error})") from error
  depths = [
    len(
      {
        k.split(".")[3]
        for k in shapes
        if k.startswith(f"{tower}.encoder.layers.")
      }
    )
    for tower in ("vision_model", "text_model")
  ]
  return make_model_config(
    image=sizes.TowerSize(
      output, depths[0], mlp_dims[0], known_heads(output, path), patch
    ),
    image_size=image_size_of(patch, tokens),
    text=sizes.TowerSize(
      width, depths[1], mlp_dims[1], known_heads(width, path)
    ),
    vocab_size=vocab,
    length=length,
    embed_dim=embed_dim,
  )


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

  def section(kind: str, size: sizes.TowerSize) -> dict[str, Any]:
    return {
      "model_type": kind,
      "hidden_size": size.width,
      "intermediate_size": size.mlp_dim,
      "num_hidden_layers": size.depth,
      "num_attention_heads": size.num_heads,
      "hidden_act": _FIXED["hidden_act"],
      "layer_norm_eps": _FIXED["layer_norm_eps"],
    }

  return {
    "architectures": ["SiglipModel"],
    "model_type": "siglip",
    "text_config": {
      **section("siglip_text_model", text),
      "vocab_size": model.text.vocab_size,
      "max_position_embeddings": model.text.length,
      "projection_size": model.embed_dim or image.width,
      # Nobody asks for them, and its defaults lie beyond small vocabularies.
      "bos_token_id": None,
      "eos_token_id": None,
    },
    "vision_config": {
      **section("siglip_vision_model", image),
      "image_size": model.image.image_size,
      "patch_size": image.patch_size,
    },
  }
