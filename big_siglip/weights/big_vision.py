"""Names of SigLIP in google-research/big_vision (.npz).

models/vit.py, models/proj/image_text/text_transformer.py and, for NaFlex,
models/proj/image_text/naflex_vit.py. Layers come one by one (`encoderblock_3/`)
or stacked (`encoderblock/`), tower by tower.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from big_siglip.errors import UserError
from big_siglip.schema import sizes
from big_siglip.weights import naflex
from big_siglip.weights import rules as r
from big_siglip.weights.model_config import (
  image_size_of,
  make_model_config,
)
from big_siglip.weights.names import Naming

NAMING = Naming(
  image="img/",
  image_sign="embedding/kernel",
  text="txt/",
  text_signs=("Encoder_0/", "Embed_0/", "pos_embedding", "head/"),
  scale="t",
  bias="b",
  others=("head/",),
)
_ENCODERS = {"image": "img/Transformer", "text": "txt/Encoder_0"}


def rules(model: Any, stacked: tuple[str, ...] = ()) -> list[r.Rule]:
  """Returns the table of a `config.model`.

  Args:
    model: `config.model`.
    stacked: which of "image" and "text" have their layers stacked.
  """
  return list(_rules(model, stacked))


def _rules(model: Any, stacked: tuple[str, ...]) -> Iterator[r.Rule]:
  depth = sizes.resolve_image(model.image).depth
  kernel, positions = r.SAME, r.LEADING
  if model.image.max_patches:
    kernel, positions = naflex.KERNEL, naflex.grid(sizes.grid_side(model.image))
  yield r.rule("img/embedding/kernel", "image/patch_embedding/kernel", kernel)
  yield r.rule("img/embedding/bias", "image/patch_embedding/bias")
  yield r.rule("img/pos_embedding", "image/position_embedding", positions)
  yield from _encoder("image", depth, "image" in stacked)
  if model.image.pooling == "map":
    head = "img/MAPHead_0"
    yield r.rule(f"{head}/probe", "image/pool/probe")
    yield from _attention(
      f"{head}/MultiHeadDotProductAttention_0", "image/pool/attention"
    )
    yield from _norm(f"{head}/LayerNorm_0", "image/pool/norm")
    yield from _mlp(f"{head}/MlpBlock_0", "image/pool/mlp")
  if not sizes.has_text_tower(model):
    return
  depth = sizes.resolve_text(model.text).depth
  yield r.rule("txt/Embed_0/embedding", "text/token_embedding/embedding")
  yield r.rule("txt/pos_embedding", "text/position_embedding", r.LEADING)
  yield from _encoder("text", depth, "text" in stacked)
  if model.text.head:
    yield from _dense("txt/head", "text/head")
  yield r.rule("t", "logit_scale", r.LEADING)
  yield r.rule("b", "logit_bias", r.LEADING)


def _encoder(tower: str, depth: int, stacked: bool) -> Iterator[r.Rule]:
  theirs, ours = _ENCODERS[tower], f"{tower}/encoder"
  layers = [list(_block(theirs, ours, index)) for index in range(depth)]
  if stacked:
    for alike in zip(*layers, strict=True):
      key = alike[0].key.replace("/encoderblock_0/", "/encoderblock/")
      yield r.Rule(key, tuple(one.paths[0] for one in alike), stacked=True)
  else:
    for layer in layers:
      yield from layer
  yield from _norm(f"{theirs}/encoder_norm", f"{ours}/norm")


def _block(theirs: str, ours: str, index: int) -> Iterator[r.Rule]:
  layer, block = f"{theirs}/encoderblock_{index}", f"{ours}/block_{index}"
  yield from _norm(f"{layer}/LayerNorm_0", f"{block}/attention_norm")
  yield from _attention(
    f"{layer}/MultiHeadDotProductAttention_0", f"{block}/attention"
  )
  yield from _norm(f"{layer}/LayerNorm_1", f"{block}/mlp_norm")
  yield from _mlp(f"{layer}/MlpBlock_0", f"{block}/mlp")


def _attention(theirs: str, ours: str) -> Iterator[r.Rule]:
  for name in ("query", "key", "value", "out"):
    yield from _dense(f"{theirs}/{name}", f"{ours}/{name}")


def _dense(theirs: str, ours: str) -> Iterator[r.Rule]:
  yield r.rule(f"{theirs}/kernel", f"{ours}/kernel")
  yield r.rule(f"{theirs}/bias", f"{ours}/bias")


def _norm(theirs: str, ours: str) -> Iterator[r.Rule]:
  yield r.rule(f"{theirs}/scale", f"{ours}/scale")
  yield r.rule(f"{theirs}/bias", f"{ours}/bias")


def _mlp(theirs: str, ours: str) -> Iterator[r.Rule]:
  yield from _dense(f"{theirs}/Dense_0", f"{ours}/up")
  yield from _dense(f"{theirs}/Dense_1", f"{ours}/down")


def stacked_towers(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
  """Returns which towers have their layers stacked."""
  return tuple(
    tower
    for tower, theirs in _ENCODERS.items()
    if any(key.startswith(f"{theirs}/encoderblock/") for key in shapes)
  )


class SummedPositions:
  """Old checkpoints, whose text positions come in two arrays to be added.

  As `load` of big_vision's text_transformer.py does.
  """

  EXTRA = "txt/Encoder_0/pos_embedding"

  def __init__(self, reader: r.Reader):
    """Hides the second array of `reader` in the first."""
    self._reader = reader
    self.path = reader.path

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Returns {key: shape}, without the second array."""
    shapes = dict(self._reader.shapes())
    del shapes[self.EXTRA]
    return shapes

  def read(self, key: str) -> np.ndarray:
    """Returns one array; the positions added."""
    array = self._reader.read(key)
    if key == "txt/pos_embedding":
      array = array + self._reader.read(self.EXTRA)
    return array


def infer_config(
  shapes: Mapping[str, tuple[int, ...]],
  path: str,
  towers: tuple[str, ...] = ("image", "text"),
) -> Any:
  """Returns our `config.model` of the arrays' shapes.

  Args:
    shapes: of all arrays.
    path: for messages.
    towers: that the file has: ("image", "text") or ("image",).

  Raises:
    UserError: no SigLIP model.
  """
  try:
    kernel = shapes["img/embedding/kernel"]
    width = kernel[-1]
    if len(kernel) == 2:
      patch = naflex.patch_size(kernel[0])
      sight = naflex.sight(patch, shapes["img/pos_embedding"][0])
    else:
      patch, tokens = kernel[0], shapes["img/pos_embedding"][-2]
      sight = {"image_size": image_size_of(patch, tokens)}
    pooled = any(key.startswith("img/MAPHead_0/") for key in shapes)
    seen = dict(
      image=_tower_size(shapes, "image", width, patch),
      **sight,
      pooling="map" if pooled or "text" in towers else "none",
    )
    if "text" not in towers:
      return make_model_config(**seen, embed_dim=width)
    vocab, _ = shapes["txt/Embed_0/embedding"]
    text_width = shapes["txt/pos_embedding"][-1]
    head = shapes.get("txt/head/kernel")
    return make_model_config(
      **seen,
      text=_tower_size(shapes, "text", text_width, None),
      vocab_size=vocab,
      length=shapes["txt/pos_embedding"][-2],
      embed_dim=head[1] if head else text_width,
      text_head=head is not None,
    )
  except (KeyError, ValueError, IndexError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(f"{path}: holds no SigLIP model ({error})") from error


def _tower_size(shapes, tower, width, patch) -> sizes.TowerSize:
  theirs = _ENCODERS[tower]
  attention = "MultiHeadDotProductAttention_0/query/kernel"
  hidden = "MlpBlock_0/Dense_0/kernel"
  if tower in stacked_towers(shapes):
    depth, _, heads, _ = shapes[f"{theirs}/encoderblock/{attention}"]
    mlp_dim = shapes[f"{theirs}/encoderblock/{hidden}"][-1]
  else:
    prefix = f"{theirs}/encoderblock_"
    depth = len({k.split("/")[2] for k in shapes if k.startswith(prefix)})
    _, heads, _ = shapes[f"{prefix}0/{attention}"]
    mlp_dim = shapes[f"{prefix}0/{hidden}"][-1]
  return sizes.TowerSize(width, depth, mlp_dim, heads, patch)
