"""A bundle gives what the model gives."""

import io
import subprocess
import sys

import jax
from ml_collections import ConfigDict
import model_cases
import numpy as np
from PIL import Image
import pytest

import big_siglip
from big_siglip.errors import UserError
from big_siglip.models import SigLIP
from big_siglip.trained import serving

DATA = {
  "tokenizer": "bytes",
  "lowercase": True,
  "clean": "none",
  "pad_id": 1,
  "resize": "bicubic",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """The same parameters as a model's folder and as a bundle."""
  place = tmp_path_factory.mktemp("serving")
  config = model_cases.model_config({}, dict(vocab_size=259), embed_dim=32)
  params = jax.device_put(model_cases.random_params(SigLIP(config)))
  model_cases.save_model(
    place / "model",
    params,
    config,
    DATA,
  )
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


ALONE = """
import json, pathlib, sys
sys.modules["big_siglip"] = None  # An import of it would fail.
import jax, numpy as np
from safetensors.numpy import load_file
folder = pathlib.Path(sys.argv[1])
settings = json.loads((folder / "serving.json").read_text())
size = settings["image_size"]
image = np.arange(2 * size * size * 3, dtype=np.uint8)
rows = dict(
  image=image.reshape(2, size, size, 3),
  text=np.arange(2 * settings["text_length"], dtype=np.int32).reshape(2, -1),
)
params = load_file(folder / "params.safetensors")
for tower in ("image", "text"):
  program = jax.export.deserialize((folder / f"{tower}.stablehlo").read_bytes())
  assert {"cpu", "cuda", "tpu"} == set(program.platforms)
  own = {k: v for k, v in params.items() if k.startswith(tower + "/")}
  np.save(folder / f"{tower}.npy", program.call(own, rows[tower]))
"""


def test_a_bundle_runs_without_our_code(folders):
  pytest.importorskip("safetensors")
  done = subprocess.run(
    [sys.executable, "-c", ALONE, str(folders / "bundle")],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  model = big_siglip.load(str(folders / "model"))
  made = model.preprocess.value
  size, length = made.image_size, made.text_length
  image = np.arange(2 * size * size * 3, dtype=np.uint8)
  rows = dict(
    image=image.reshape(2, size, size, 3),
    text=np.arange(2 * length, dtype=np.int32).reshape(2, -1),
  )
  for tower, batch in rows.items():
    embed = getattr(model.embedders, tower)
    np.testing.assert_allclose(
      np.load(folders / "bundle" / f"{tower}.npy"),
      embed(model.params, batch, {})[0][:2],
      atol=1e-6,
    )


def test_a_place_that_cannot_be_written_is_said_so(tmp_path):
  (tmp_path / "file").write_text("")
  config = ConfigDict({"model": model_cases.model_config(), "data": DATA})
  with pytest.raises(UserError, match="file/x: not writable"):
    serving.save(tmp_path / "file" / "x", {}, config)


def test_what_is_no_bundle_is_said_so(tmp_path):
  with pytest.raises(UserError, match="holds no serving bundle"):
    serving.load(str(tmp_path))
