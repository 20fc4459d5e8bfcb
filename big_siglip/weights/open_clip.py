"""Names of SigLIP in mlfoundations/open_clip (safetensors).

`CustomTextCLIP` with timm's VisionTransformer as image tower and open_clip's
own TextTransformer (open_clip/convert.py, model_configs/ViT-*-SigLIP*.json).
"""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

from big_siglip.errors import UserError
from big_siglip.schema import sizes
from big_siglip.weights import naflex
from big_siglip.weights import rules as r
from big_siglip.weights.model_config import (
  image_size_of,
  known_heads,
  make_model_config,
)
from big_siglip.weights.names import Naming

_TRUNK = "visual.trunk"
NAMING = Naming(
  image="visual.trunk.",
  image_sign="patch_embed.proj.weight",
  text="text.",
  text_signs=("transformer.", "token_embedding.", "positional_em", "ln_final."),
  scale="logit_scale",
  bias="logit_bias",
  others=("head.", "fc_norm."),
)
# Timm's NaFlexVit embeds patches by a linear map.
NAFLEX_NAMING = dataclasses.replace(NAMING, image_sign="embeds.proj.weight")


def rules(model: Any) -> list[r.Rule]:
  """Returns the table of a `config.model`."""
  return list(_rules(model))


def _rules(model: Any) -> Iterator[r.Rule]:
  yield from _image_rules(model.image)
  if sizes.has_text_tower(model):
    yield from _text_rules(model.text)
    yield r.rule("logit_scale", "logit_scale")
    yield r.rule("logit_bias", "logit_bias")


def _image_rules(image: Any) -> Iterator[r.Rule]:
  embed, kernel = f"{_TRUNK}.patch_embed.proj", r.CONV
  place, positions = f"{_TRUNK}.pos_embed", r.LEADING
  if image.max_patches:
    embed, kernel = f"{_TRUNK}.embeds.proj", r.linear(3)
    place = f"{_TRUNK}.embeds.pos_embed"
    positions = naflex.grid(sizes.grid_side(image), leading=True)
  yield r.rule(f"{embed}.weight", "image/patch_embedding/kernel", kernel)
  yield r.rule(f"{embed}.bias", "image/patch_embedding/bias")
  yield r.rule(place, "image/position_embedding", positions)
  for index in range(sizes.resolve_image(image).depth):
    yield from _block(
      f"{_TRUNK}.blocks.{index}",
      f"image/encoder/block_{index}",
      norms=("norm1", "norm2"),
      qkv=("attn.qkv.weight", "attn.qkv.bias"),
      out="attn.proj",
      mlp=("mlp.fc1", "mlp.fc2"),
    )
  yield from _norm(f"{_TRUNK}.norm", "image/encoder/norm")
  if image.pooling == "none":
    return
  pool = f"{_TRUNK}.attn_pool"
  yield r.rule(f"{pool}.latent", "image/pool/probe")
  yield from _linear(f"{pool}.q", "image/pool/attention/query")
  pair = [f"image/pool/attention/{name}" for name in ("key", "value")]
  yield r.Rule(
    f"{pool}.kv.weight", tuple(f"{p}/kernel" for p in pair), r.linear(1)
  )
  yield r.Rule(f"{pool}.kv.bias", tuple(f"{p}/bias" for p in pair), r.FLAT)
  yield from _linear(f"{pool}.proj", "image/pool/attention/out", inputs=2)
  yield from _norm(f"{pool}.norm", "image/pool/norm")
  yield from _linear(f"{pool}.mlp.fc1", "image/pool/mlp/up")
  yield from _linear(f"{pool}.mlp.fc2", "image/pool/mlp/down")


def _text_rules(text: Any) -> Iterator[r.Rule]:
  yield r.rule("text.token_embedding.weight", "text/token_embedding/embedding")
  yield r.rule("text.positional_embedding", "text/position_embedding")
  for index in range(sizes.resolve_text(text).depth):
    yield from _block(
      f"text.transformer.resblocks.{index}",
      f"text/encoder/block_{index}",
      norms=("ln_1", "ln_2"),
      qkv=("attn.in_proj_weight", "attn.in_proj_bias"),
      out="attn.out_proj",
      mlp=("mlp.c_fc", "mlp.c_proj"),
    )
  yield from _norm("text.ln_final", "text/encoder/norm")
  if text.head:  # The i18n So400m's has none ("proj_type": "none").
    yield from _linear("text.text_projection", "text/head")


def _block(theirs, ours, *, norms, qkv, out, mlp) -> Iterator[r.Rule]:
  yield from _norm(f"{theirs}.{norms[0]}", f"{ours}/attention_norm")
  fused = [f"{ours}/attention/{name}" for name in ("query", "key", "value")]
  yield r.Rule(
    f"{theirs}.{qkv[0]}", tuple(f"{p}/kernel" for p in fused), r.linear(1)
  )
  yield r.Rule(f"{theirs}.{qkv[1]}", tuple(f"{p}/bias" for p in fused), r.FLAT)
  yield from _linear(f"{theirs}.{out}", f"{ours}/attention/out", inputs=2)
  yield from _norm(f"{theirs}.{norms[1]}", f"{ours}/mlp_norm")
  yield from _linear(f"{theirs}.{mlp[0]}", f"{ours}/mlp/up")
  yield from _linear(f"{theirs}.{mlp[1]}", f"{ours}/mlp/down")


def _linear(theirs, ours, inputs=1) -> Iterator[r.Rule]:
  yield r.rule(f"{theirs}.weight", f"{ours}/kernel", r.linear(inputs))
  yield r.rule(f"{theirs}.bias", f"{ours}/bias", r.FLAT)


def _norm(theirs, ours) -> Iterator[r.Rule]:
  yield r.rule(f"{theirs}.weight", f"{ours}/scale")
  yield r.rule(f"{theirs}.bias", f"{ours}/bias")


def infer_config(
  shapes: Mapping[str, tuple[int, ...]],
  path: str,
  towers: tuple[str, ...] = ("image", "text"),
  heads: Mapping[str, int] | None = None,
) -> Any:
  """Returns our `config.model` of the arrays' shapes.

  Args:
    shapes: of all arrays.
    path: for messages.
    towers: that the file has: ("image", "text") or ("image",).
    heads: of "image" and "text"; None: those of the published towers.

  Raises:
    UserError: no SigLIP model, or of a width that no published tower has.
  """
  try:
    if kernel := shapes.get(f"{_TRUNK}.embeds.proj.weight"):
      width, patch = kernel[0], naflex.patch_size(kernel[1])
      side = shapes[f"{_TRUNK}.embeds.pos_embed"][1]
      sight = naflex.sight(patch, side)
    else:
      width, _, patch, _ = shapes[f"{_TRUNK}.patch_embed.proj.weight"]
      tokens = shapes[f"{_TRUNK}.pos_embed"][1]
      sight = {"image_size": image_size_of(patch, tokens)}
    image = sizes.TowerSize(
      width,
      _depth(shapes, f"{_TRUNK}.blocks."),
      shapes[f"{_TRUNK}.blocks.0.mlp.fc1.weight"][0],
      heads["image"] if heads else known_heads(width, path),
      patch,
    )
    pooled = any(key.startswith(f"{_TRUNK}.attn_pool.") for key in shapes)
    seen = dict(
      image=image,
      **sight,
      pooling="map" if pooled or "text" in towers else "none",
    )
    if "text" not in towers:
      return make_model_config(**seen, embed_dim=width)
    vocab, text_width = shapes["text.token_embedding.weight"]
    head = shapes.get("text.text_projection.weight")
    return make_model_config(
      **seen,
      text=sizes.TowerSize(
        text_width,
        _depth(shapes, "text.transformer.resblocks."),
        shapes["text.transformer.resblocks.0.mlp.c_fc.weight"][0],
        heads["text"] if heads else known_heads(text_width, path),
      ),
      vocab_size=vocab,
      length=shapes["text.positional_embedding"][0],
      embed_dim=head[0] if head else width,
      text_head=head is not None,
    )
  except (KeyError, ValueError, IndexError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f"{path}: holds no SigLIP model of open_clip ({error})"
    ) from error


def _depth(shapes, prefix: str) -> int:
  return len(
    {k[len(prefix) :].split(".")[0] for k in shapes if k.startswith(prefix)}
  )
