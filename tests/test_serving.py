"""A bundle gives what the model gives."""

import io

import jax
from ml_collections import ConfigDict
import model_cases
import numpy as np
from PIL import Image
import pytest

import big_siglip
from big_siglip import saved, serving
from big_siglip.errors import UserError
from big_siglip.models import SigLIP

DATA = {
  "tokenizer": "bytes",
  "lowercase": True,
  "pad_id": 1,
  "resize": "bicubic",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """The same parameters as a model's folder and as a bundle."""
  from etils import epath

  place = tmp_path_factory.mktemp("serving")
  config = model_cases.model_config({}, dict(vocab_size=259), embed_dim=32)
  params = jax.device_put(model_cases.random_params(SigLIP(config)))
  saved.save_model(epath.Path(place / "model"), params, config, DATA)
  both = ConfigDict({"model": config, "data": DATA})
  serving.save(place / "bundle", params, both)
  return place


@pytest.mark.parametrize("count", [1, 3])
def test_a_bundle_embeds_as_the_model_does_for_any_batch(folders, count):
  model = big_siglip.load(str(folders / "model"))
  bundle = serving.load(str(folders / "bundle"))
  rng = np.random.default_rng(0)
  images = []
  for _ in range(count):
    stream = io.BytesIO()
    pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    images.append(stream.getvalue())
  texts = ["a dog", "Two cats", "x"][:count]
  np.testing.assert_allclose(
    bundle.embed_images(images), model.embed_images(images), atol=1e-6
  )
  np.testing.assert_allclose(
    bundle.embed_texts(texts), model.embed_texts(texts), atol=1e-6
  )
  assert abs(bundle.settings["logit_scale"] - model.logit_scale) < 1e-5
  assert bundle.settings["logit_bias"] == model.logit_bias


def test_what_is_no_bundle_is_said_so(tmp_path):
  with pytest.raises(UserError, match="holds no serving bundle"):
    serving.load(str(tmp_path))
