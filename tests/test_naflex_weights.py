"""NaFlex weights go in and out; transformers is the judge."""

import json
import pathlib

import jax
from ml_collections import ConfigDict
import numpy as np
from peers import torch, transformers
from PIL import Image
import pytest
import runs

from big_siglip import sharding
from big_siglip.data.preprocessing import Preprocess, Preprocessing
from big_siglip.errors import UserError
from big_siglip.models import SigLIP
from big_siglip.trained.saved import load_weights
from big_siglip.weights import export, open_weights
from big_siglip.weights.preprocessing import find_images, find_preprocessing

pytestmark = pytest.mark.torch

PATCH, SIDE = 4, 16
GRIDS = {
  16: ((4, 4), (1, 7), (3, 5), (2, 2), (1, 16), (5, 3), (7, 1), (16, 1)),
  64: ((8, 8), (1, 7), (3, 5), (4, 16), (7, 1)),
  256: ((16, 16), (1, 7), (3, 5), (12, 21), (2, 128), (7, 1), (200, 1)),
  1024: ((32, 32), (1, 7), (3, 5), (4, 256), (7, 1)),
}
FULL = {  # (width, MLP, heads) of the image tower.
  "B": (768, 3072, 12),
  "So400m": (1152, 4304, 16),
}


def make(width, mlp, heads, patch, scale):
  """Returns a model of transformers with two blocks a tower.

  Args:
    width: of both towers.
    mlp: hidden units.
    heads: of attention.
    patch: pixels along a side.
    scale: of the noise that its parameters are.
  """
  size = dict(
    hidden_size=width,
    intermediate_size=mlp,
    num_hidden_layers=2,
    num_attention_heads=heads,
  )
  config = transformers.Siglip2Config(
    text_config=dict(**size, vocab_size=259, max_position_embeddings=12),
    vision_config=dict(**size, patch_size=patch, num_patches=SIDE**2),
  )
  model = transformers.Siglip2Model(config).eval()
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, leaf in model.named_parameters():
      noise = scale * torch.randn(leaf.shape, generator=generator)
      is_scale = "norm" in name and name.endswith("weight")
      leaf.copy_(noise + float(is_scale))
  return model


@pytest.fixture(scope="module")
def theirs():
  return make(32, 64, 2, PATCH, 0.2)


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
  path = tmp_path_factory.mktemp("siglip2") / "hf"
  theirs.save_pretrained(path)
  return path


@pytest.fixture(scope="module")
def ours(folder):
  return read(folder)


def config_of(model):
  data = dict(
    tokenizer="bytes", lowercase=True, clean="none", pad_id=1, resize="bilinear"
  )
  return ConfigDict(dict(model=model, data=data))


def read(path):
  weights = open_weights(str(path))
  config = config_of(weights.model)
  return load_weights(weights, config, sharding.make_mesh()), config


def sequences(length, patch):
  """Returns uint8 patches of all grids of a length, and the grids."""
  grids = np.int32(GRIDS[length])
  shape = len(grids), length, 3 * patch**2
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8), grids


@pytest.mark.parametrize("length", sorted(GRIDS))
def test_transformers_and_we_see_the_same(theirs, ours, length):
  assert_same(theirs, *ours, length, PATCH)


@pytest.mark.slow
@pytest.mark.parametrize("size", FULL)
def test_transformers_and_we_see_the_same_at_full_width(size, tmp_path):
  model = make(*FULL[size], 16, 0.02)
  model.save_pretrained(tmp_path)
  ours = read(tmp_path)
  for length in GRIDS:
    assert_same(model, *ours, length, 16)


def assert_same(theirs, params, config, length, patch):
  """Both make the same of all grids of a length, to 1e-5."""
  patches, grids = sequences(length, patch)
  real = np.arange(length) < grids.prod(axis=1)[:, None]
  text = np.random.default_rng(1).integers(0, 259, (3, 12)).astype(np.int32)
  model = SigLIP(config.model)
  image = {"patches": patches, "grid": grids}

  def see(params):
    see = model.apply({"params": params}, image, text, method="see")
    return see, params["logit_scale"], params["logit_bias"]

  seen, scale, bias = jax.jit(see)(params)
  with torch.no_grad():
    expected = theirs(
      input_ids=torch.tensor(text),
      pixel_values=torch.tensor(patches / 127.5 - 1, dtype=torch.float32),
      pixel_attention_mask=torch.tensor(real.astype(np.int32)),
      spatial_shapes=torch.tensor(grids),
    )
  hidden = expected.vision_model_output.last_hidden_state.numpy()
  logits = np.exp(scale) * seen.image @ seen.text.T + bias
  for name, found, right in (
    ("images", seen.image, expected.image_embeds),
    ("texts", seen.text, expected.text_embeds),
    ("tokens", np.asarray(seen.image_tokens)[real], hidden[real]),
    ("logits", logits, expected.logits_per_image),
  ):
    np.testing.assert_allclose(found, right, atol=1e-5, err_msg=name)
    difference = np.abs(np.asarray(found) - np.asarray(right)).max()
    print(f"{length} patches, {len(grids)} grids, {name}: {difference:.1e}")


def test_config_json_may_leave_all_out_but_the_kind():
  from big_siglip.weights.huggingface_config import model_config

  found = model_config({"model_type": "siglip2"}, "config.json")
  assert (found.image.size, found.text.size) == ("B/16", "B")
  assert (found.image.image_size, found.image.max_patches) == (256, 256)
  assert (found.text.vocab_size, found.text.length) == (32_000, 64)
  given = {
    "model_type": "siglip2",
    "text_config": {"vocab_size": 256_000},
    "vision_config": {"num_patches": 64},
  }
  found = model_config(given, "config.json")
  assert (found.image.image_size, found.text.vocab_size) == (128, 256_000)
  given["vision_config"]["num_patches"] = 60
  with pytest.raises(UserError, match=r"num_patches=60: must be a square"):
    model_config(given, "config.json")


@pytest.mark.parametrize("name", sorted(export.FORMATS))
def test_out_and_in_again_gives_the_same_bits(ours, tmp_path, name):
  params, config = ours
  config = config.copy_and_resolve_references()
  config.model.image.max_patches = 100
  suffix = {"big_vision": "m.npz", "open_clip": "m.safetensors"}.get(name, "m")
  export.FORMATS[name](tmp_path / suffix, params, config)
  again, found = read(tmp_path / suffix)
  made = find_preprocessing(open_weights(str(tmp_path / suffix)))
  assert (made.max_patches, made.patch_size) == (100, PATCH)
  assert found.model.image.image_size == PATCH * SIDE
  runs.assert_same(runs.flatten(again), runs.flatten(params))


def test_names_and_shapes_are_those_of_big_vision_and_timm(ours, tmp_path):
  params, config = ours
  export.to_big_vision(tmp_path / "m.npz", params, config)
  with np.load(tmp_path / "m.npz") as file:
    shapes = {key: file[key].shape for key in file.files}
  assert shapes["params/img/embedding/kernel"] == (48, 32)
  assert shapes["params/img/pos_embedding"] == (16, 16, 32)
  assert shapes["params/img/MAPHead_0/probe"] == (1, 1, 32)
  export.to_open_clip(tmp_path / "m.safetensors", params, config)
  shapes = open_weights(str(tmp_path / "m.safetensors")).reader.shapes()
  assert shapes["visual.trunk.embeds.proj.weight"] == (32, 48)
  assert shapes["visual.trunk.embeds.pos_embed"] == (1, 16, 16, 32)


def test_transformers_loads_what_we_export_and_sees_the_same(
  theirs, ours, tmp_path
):
  params, config = ours
  export.to_huggingface(tmp_path / "out", params, config)
  model, said = transformers.AutoModel.from_pretrained(
    tmp_path / "out", output_loading_info=True
  )
  assert type(model) is transformers.Siglip2Model
  assert not any(said.values()), said
  for name, leaf in theirs.state_dict().items():
    np.testing.assert_array_equal(model.state_dict()[name], leaf, err_msg=name)
  written = json.loads((tmp_path / "out/preprocessor_config.json").read_text())
  assert written["image_processor_type"] == "Siglip2ImageProcessor"
  assert (written["patch_size"], written["max_num_patches"]) == (4, 256)


@pytest.mark.parametrize("size", ((48, 60), (7, 90), (301, 200), (1, 1)))
def test_a_photo_becomes_the_patches_of_transformers(ours, tmp_path, size):
  _, config = ours
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (*size, 3), np.uint8)
  processor = transformers.Siglip2ImageProcessorPil(
    patch_size=PATCH, max_num_patches=64
  )
  theirs = processor.preprocess(Image.fromarray(image), return_tensors="np")
  config = config.copy_and_resolve_references()
  config.model.image.max_patches = 64
  ours = Preprocess.of(Preprocessing.of(config)).image(image)
  assert ours["grid"].tolist() == theirs["spatial_shapes"][0].tolist()
  real = theirs["pixel_attention_mask"][0].astype(bool)
  assert real.sum() == ours["grid"].prod()
  levels = (theirs["pixel_values"][0] + 1) * 127.5
  np.testing.assert_allclose(ours["patches"][real], levels[real], atol=1e-3)


def test_its_image_processor_is_followed_or_refused(folder, ours, tmp_path):
  weights = open_weights(str(folder))
  file = pathlib.Path(folder) / "preprocessor_config.json"
  given = {
    "image_processor_type": "Siglip2ImageProcessor",
    "max_num_patches": 784,
    "patch_size": PATCH,
    "resample": 3,
  }
  try:
    file.write_text(json.dumps(given))
    found = find_images(weights)
    assert (found["max_patches"], found["resize"]) == (784, "bicubic")
    for change, said in (
      ({"patch_size": 8}, "makes patches of 8 pixels, and the model sees 4"),
      ({"max_num_patches": 0}, "max_num_patches=0"),
      ({"size": 3}, "size"),
    ):
      file.write_text(json.dumps(given | change))
      with pytest.raises(UserError) as error:
        find_images(weights)
      assert said in str(error.value)
      assert len(str(error.value).splitlines()) == 1
    kind = {"image_processor_type": "SiglipImageProcessor"}
    file.write_text(json.dumps(kind))
    with pytest.raises(UserError, match="makes squares, and the model sees pa"):
      find_images(weights)
  finally:
    file.unlink()


def test_an_image_tower_alone_is_read(theirs, ours, tmp_path):
  config = transformers.Siglip2VisionConfig(
    **theirs.config.vision_config.to_diff_dict()
  )
  tower = transformers.Siglip2VisionModel(config)
  own = {
    key.removeprefix("vision_model."): leaf
    for key, leaf in theirs.state_dict().items()
    if key.startswith("vision_model.")
  }
  names = tower.state_dict().keys()
  prefix = "" if next(iter(names)) in own else "vision_model."
  tower.load_state_dict({prefix + key: leaf for key, leaf in own.items()})
  tower.save_pretrained(tmp_path / "tower")
  params, found = read(tmp_path / "tower")
  assert found.model.image.max_patches == 256
  assert "text" not in params
  runs.assert_same(
    runs.flatten({"image": params["image"]}),
    runs.flatten({"image": ours[0]["image"]}),
  )
