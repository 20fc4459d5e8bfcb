"""Preprocessing as one value: carried as JSON, and compared."""

import dataclasses
import io
import json

import jax
from ml_collections import ConfigDict
import model_cases
import numpy as np
from PIL import Image
import pytest
import runs

import big_siglip
from big_siglip import build
from big_siglip.command_line import load_config
from big_siglip.config import changed_fields, find_problems
from big_siglip.data.preprocessing import IMAGE_FIELDS, Preprocessing
from big_siglip.errors import UserError
from big_siglip.models import SigLIP
from big_siglip.run import workdir
from big_siglip.schema import fields
from big_siglip.trained import from_init, saved, serving
from big_siglip.trained.fitting import differences
from big_siglip.weights import export, open_weights
from big_siglip.weights.preprocessing import find_images, find_preprocessing

VALUE = Preprocessing(16, "bilinear", 8, "bytes", True, "html", 1)


def test_json_gives_it_back():
  text = json.dumps(VALUE.as_dict() | {"logit_scale": 10.0})
  assert Preprocessing.from_dict(json.loads(text)) == VALUE
  assert Preprocessing.of(runs.config()).text_length == 16


def test_older_files_say_less():
  older = VALUE.as_dict()
  for name in ("clean", "crop", "crop_fraction", "fill", "mean", "std"):
    del older[name]
  found = Preprocessing.from_dict(older)
  assert found == dataclasses.replace(VALUE, clean="none")
  with pytest.raises(UserError, match="preprocessing: has no resize"):
    del older["resize"]
    Preprocessing.from_dict(older)


def test_a_line_for_each_difference(tmp_path):
  other = dataclasses.replace(VALUE, image_size=24, pad_id=0)
  assert VALUE.differences(other) == [
    "config.model.image.image_size=16, not 24",
    "config.data.pad_id=1, not 0",
  ]
  assert VALUE.differences(other, ("pad_id", "resize")) == [
    "config.data.pad_id=1, not 0"
  ]
  files = tmp_path / "a.model", tmp_path / "b.model"
  for file in files:
    file.write_text("one")
  one, two = (dataclasses.replace(VALUE, tokenizer=str(f)) for f in files)
  assert not one.differences(two) and not one.hashed().differences(two)
  files[1].write_text("two")
  assert len(one.differences(two)) == 1


DATA = {
  "tokenizer": "bytes",
  "lowercase": False,
  "clean": "html",
  "pad_id": 0,
  "resize": "lanczos",
  "crop": "center",
  "crop_fraction": 0.8,
  "fill": (1, 2, 3),
}
COLORS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A model's folder of another preprocessing than is usual, and its parts."""
  folder = tmp_path_factory.mktemp("model")
  config = model_cases.model_config(COLORS, dict(vocab_size=259), embed_dim=32)
  params = jax.device_put(model_cases.random_params(SigLIP(config)))
  model_cases.save_model(folder / "m", params, config, DATA)
  return folder / "m", params, ConfigDict({"model": config, "data": DATA})


def _photo():
  rng = np.random.default_rng(0)
  image = Image.fromarray(rng.integers(0, 256, (30, 41, 3), np.uint8))
  buffer = io.BytesIO()
  image.save(buffer, "png")
  return image, buffer.getvalue()


def _expected(params, config):
  """Returns the embedding of the photo, by Pillow and by hand."""
  image, _ = _photo()
  image = image.resize((27, 20), Image.Resampling.LANCZOS)
  pixels = np.asarray(image.crop((5, 2, 21, 18)), np.float64) / 255
  pixels = (pixels - COLORS["mean"]) / COLORS["std"]
  rows = np.float32(pixels)[None], None
  return jax.jit(SigLIP(config.model).apply)({"params": params}, *rows)[0]


def test_models_bundles_and_training_see_it(model, tmp_path):
  folder, params, config = model
  expected = _expected(params, config)
  loaded = big_siglip.load(str(folder))
  _, photo = _photo()
  for image in (photo, _photo()[0], np.asarray(_photo()[0])):
    got = loaded.embed_images([image])
    np.testing.assert_allclose(got, expected, atol=1e-6)
  serving.save(tmp_path / "bundle", params, config)
  bundle = serving.load(str(tmp_path / "bundle"))
  np.testing.assert_allclose(bundle.embed_images([photo]), expected, atol=1e-6)
  assert bundle.preprocess.value == Preprocessing.of(config)
  whole = runs.config(model__text__vocab_size=259)
  whole.data.update({**DATA, "crop_min_area": 1.0})
  whole.model.image.update(COLORS)
  view, _ = build.views(whole)
  assert view.crop == "center" and view.fill == (1, 2, 3)
  assert build.preprocess(whole).value == dataclasses.replace(
    Preprocessing.of(config), text_length=16
  )


def test_it_goes_out_and_comes_back_and_starts_runs(model, tmp_path):
  folder, params, config = model
  made = Preprocessing.of(config)
  ending = {"big_vision": "m.npz", "open_clip": "m.safetensors"}
  for name, write in export.FORMATS.items():
    place = tmp_path / name / ending.get(name, "")
    write(place, params, config)
    assert find_preprocessing(open_weights(str(place))) == made, name
  # As transformers says it, when our own file is lost; it fills with black.
  hf = tmp_path / "huggingface"
  (hf / "preprocessing.json").unlink()
  weights = open_weights(str(hf))
  found = {**find_images(weights), "fill": DATA["fill"]}
  theirs = {name: made.as_dict()[name] for name in found}
  assert found == theirs
  assert found.keys() == set(IMAGE_FIELDS) - {"max_patches", "patch_size"}
  for path in (folder, tmp_path / "open_clip" / "m.safetensors"):
    flags = [f"--config.init.path={path}"]
    finetune = str(runs.ROOT / "configs" / "finetune.py")
    filled, lines = from_init.fill(load_config(finetune, flags))
    assert not Preprocessing.of(filled).differences(made)
    assert "mean=" in lines[0] and "crop='center'" in lines[2]
    assert not differences(saved.open_model(str(path))[1], filled)
    flags += ["--config.data.crop=none", "--config.model.image.std=(1.0,1,1)"]
    filled, _ = from_init.fill(load_config(finetune, flags))
    said = differences(saved.open_model(str(path))[1], filled)
    assert [line.partition("=")[0] for line in said] == [
      "config.data.crop",
      "config.model.image.std",
    ]


def test_a_run_of_before_says_none_of_it(tmp_path):
  old = workdir.as_json(runs.config())
  for section, name in (
    *(("data", name) for name in ("crop", "crop_fraction", "fill")),
    *(("image", name) for name in ("mean", "std")),
  ):
    del (old["data"] if section == "data" else old["model"]["image"])[name]
  whole = ConfigDict(fields.complete_config(old))
  assert not find_problems(whole)
  now = workdir.as_json(runs.config())
  assert not changed_fields(whole.to_dict(), now)
  assert Preprocessing.of(whole) == Preprocessing.of(runs.config())


@pytest.mark.parametrize(
  ("flag", "said"),
  [
    ("data.crop=middle", "config.data.crop='middle': must be one of none, ce"),
    ("data.crop_fraction=0", "crop_fraction=0.0: must lie in [0.1, 10]"),
    ("data.fill=(0,0)", "fill=(0, 0): must be 3 whole numbers; each must lie"),
    ("data.fill=(0,0,256)", "fill=(0, 0, 256): must be 3 whole numbers"),
    ("model.image.mean=(0.5,)", "model.image.mean=(0.5,): must be 3 numbers"),
    ("model.image.std=(0,1,1)", "model.image.std=(0, 1, 1): must be 3 num"),
  ],
)
def test_a_mistake_is_one_line(flag, said):
  with pytest.raises(UserError) as error:
    load_config(runs.CONFIG, [f"--config.{flag}"])
  assert said in str(error.value)


@pytest.mark.parametrize(
  ("field", "value", "said"),
  [
    ("crop", "middle", "crop='middle': must be one of none"),
    ("fill", [1, 2], "fill=[1, 2]: must be 3 whole numbers"),
    ("mean", "x", "mean='x': must be tuple or list"),
    ("std", [0, 0, 0], "std=[0, 0, 0]: must be 3 numbers"),
    ("crop_fraction", 99, "crop_fraction=99: must lie in"),
  ],
)
def test_a_damaged_file_of_ours_is_one_line(
  model, tmp_path, field, value, said
):
  _, params, config = model
  export.to_big_vision(tmp_path / "m.npz", params, config)
  file = tmp_path / "m.preprocessing.json"
  file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
  with pytest.raises(UserError) as error:
    open_weights(str(tmp_path / "m.npz"))
  assert said in str(error.value)
