"""Every published model is known by its arrays' shapes; nothing is read."""

import functools

import jax
from model_cases import abstract_params
import pytest
from reference import CHECKPOINTS, I18N

from big_siglip.models import SigLIP
from big_siglip.schema import sizes
from big_siglip.weights import (
  big_vision,
  huggingface,
  huggingface_config,
  open_clip,
)
from big_siglip.weights.model_config import make_model_config
from big_siglip.weights.rules import write_params

FORMATS = {
  "huggingface": huggingface,
  "big_vision": big_vision,
  "open_clip": open_clip,
}


def published(size, image_size, text, vocab_size, length):
  tower, _, patch = size.partition("/")
  shape = {**vars(sizes.TOWERS[tower]), "patch_size": int(patch)}
  return make_model_config(
    image=sizes.TowerSize(**shape),
    image_size=image_size,
    text=sizes.TOWERS[text],
    vocab_size=vocab_size,
    length=length,
    embed_dim=shape["width"],
    # The one published text tower without: arXiv:2303.15343's So400m-i18n.
    text_head=(size, vocab_size) != ("So400m/16", I18N),
  )


@functools.cache
def parameters(*shape):
  """Their shapes alone, which every format asks for."""
  return abstract_params(SigLIP(published(*shape)))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
  "checkpoint", CHECKPOINTS, ids=lambda c: f"{c[0]}-{c[1]}-{c[3]}"
)
def test_its_shapes_give_its_config(checkpoint, name):
  *shape, count = checkpoint
  config = published(*shape)
  params = parameters(*shape)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
  rules = FORMATS[name].rules(config)
  shapes = {key: s for key, s, _ in write_params(params, rules)}
  if name == "huggingface":
    identity = huggingface.identity_head(config)
    shapes |= {key: s for key, s, _ in identity}
    config.text.head = True  # As a matrix that changes nothing.
  infers = huggingface_config if name == "huggingface" else FORMATS[name]
  inferred = infers.infer_config(shapes, "file")
  assert inferred.to_dict() == config.to_dict()
