"""Folders that transformers, open_clip and timm write, with their processors.

The reference is transformers' own image processor, the one of Pillow.
"""

import json
import shutil
import zlib

import jax.numpy as jnp
import numpy as np
from peers import torch, transformers
from PIL import Image
import pytest
import tokenizers

import big_siglip
from big_siglip.data import vocabulary
from big_siglip.data.squares import Square
from big_siglip.errors import UserError
from big_siglip.models.vision import normalize
from big_siglip.weights import image_processor, image_transforms, open_weights
from big_siglip.weights.preprocessing import find_preprocessing

pytestmark = pytest.mark.torch

PIXELS, LENGTH, PIECES = 32, 12, 300
TEXTS = ["a red boat", "two dogs on the beach", "nothing"]
IMAGENET = {
  "image_mean": [0.485, 0.456, 0.406],
  "image_std": [0.229, 0.224, 0.225],
}
SQUARE = {"height": PIXELS, "width": PIXELS}
CROPPED = {
  "size": {"shortest_edge": 40},
  "do_center_crop": True,
  "crop_size": SQUARE,
}
# What transformers' SiglipImageProcessor is made with.
KINDS = {
  "as published": {},
  "bilinear": {"resample": 2},
  "nearest": {"resample": 0},
  "lanczos": {"resample": 1},
  "box": {"resample": 4},
  "hamming": {"resample": 5},
  "another mean": IMAGENET,
  "one number": {"image_mean": 0.4, "image_std": 0.3},
  "not normalized": {"do_normalize": False},
  "not rescaled": {"do_rescale": False},
  "neither": {"do_rescale": False, "do_normalize": False},
  "rescaled otherwise": {
    "rescale_factor": 1 / 127.5,
    "image_mean": [1.0] * 3,
    "image_std": [1.0] * 3,
  },
  "cropped": {**CROPPED, **IMAGENET},
  "cropped by an odd number": {**CROPPED, "size": {"shortest_edge": 35}},
  "not resized to enough": {**CROPPED, "size": {"shortest_edge": 21}},
  "squashed and cropped": {**CROPPED, "size": {"height": 37, "width": 37}},
  "an int": {**CROPPED, "size": 36, "crop_size": PIXELS},
  "pairs": {**CROPPED, "size": [40, 40], "crop_size": [PIXELS, PIXELS]},
  "an int is a square": {"size": PIXELS, "default_to_square": True},
}
# Shapes that lose the middle of an odd number of pixels, and slim ones.
SHAPES = ((40, 60), (61, 40), (33, 47), (8, 50), (70, 9), (32, 32))


def _images():
  rng = np.random.default_rng(0)
  return [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in SHAPES]


def _processor(kind, **settings):
  module = "siglip.image_processing_pil_siglip.SiglipImageProcessorPil"
  if kind != "Siglip":
    module = f"{kind.lower()}.image_processing_pil_{kind.lower()}"
    module += f".{kind.replace('_O', 'O')}ImageProcessorPil"
  found = transformers.models
  for name in module.split("."):
    found = getattr(found, name)
  return found(**settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A SigLIP of random weights, saved by transformers with its tokenizer."""
  place = tmp_path_factory.mktemp("theirs")
  tower = dict(
    hidden_size=64,
    num_hidden_layers=2,
    intermediate_size=128,
    num_attention_heads=2,
  )
  torch.manual_seed(0)
  model = transformers.SiglipModel(
    transformers.SiglipConfig(
      vision_config=dict(tower, image_size=PIXELS, patch_size=8),
      text_config=dict(
        tower,
        vocab_size=PIECES,
        max_position_embeddings=LENGTH,
        projection_size=64,
        bos_token_id=None,
        eos_token_id=None,
      ),
    )
  )
  with torch.no_grad():
    for parameter in model.parameters():
      parameter += 0.05 * torch.randn(parameter.shape)
  model.save_pretrained(place)
  captions = [f"{text} number {n}" for n in range(40) for text in TEXTS]
  vocabulary.train(captions, place / "spiece.model", vocab_size=PIECES)
  return place


def _save(folder, place, processor):
  """Saves model, tokenizer and processor as `save_pretrained` does."""
  shutil.copytree(folder, place)
  tokenizer = transformers.SiglipTokenizer(
    str(folder / "spiece.model"),
    model_max_length=LENGTH,
    model_input_names=["input_ids"],  # As published; else it masks the end.
  )
  whole = transformers.SiglipProcessor(processor, tokenizer)
  whole.save_pretrained(place)
  assert not (place / "preprocessor_config.json").exists()
  return whole


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_equal_those_of_the_processor(folder, tmp_path, kind):
  processor = _processor("Siglip", **{"size": SQUARE, **KINDS[kind]})
  _save(folder, tmp_path / "m", processor)
  made = find_preprocessing(open_weights(str(tmp_path / "m")))
  _compare(made, processor)
  # As older versions of transformers write it, in a file of its own.
  (tmp_path / "m" / "processor_config.json").unlink()
  processor.save_pretrained(tmp_path / "m")
  assert made == find_preprocessing(open_weights(str(tmp_path / "m")))


def _compare(made, processor):
  ours = np.stack([made.square()(image) for image in _images()])
  ours = np.asarray(normalize(jnp.asarray(ours), made.mean, made.std))
  theirs = processor(
    [Image.fromarray(image) for image in _images()], return_tensors="np"
  )["pixel_values"]
  theirs = theirs.astype(np.float32).transpose(0, 2, 3, 1)
  np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["CLIP", "ViT", "Gemma3"])
def test_processors_of_other_models_assume_other_things(name):
  processor = _processor(name)
  given = {"image_processor_type": f"{name}ImageProcessorFast"}
  found = image_processor.from_transformers(given, "file")
  said = json.loads(processor.to_json_string())
  all_said = image_processor.from_transformers(said, "file")
  assert all_said == {**found, "image_size": 224}
  square = Square(224, found["resize"], found["crop"], found["crop_fraction"])
  theirs = processor(_images(), return_tensors="np")["pixel_values"]
  for image, expected in zip(_images(), theirs, strict=True):
    pixels = jnp.asarray(square(image)[None])
    ours = normalize(pixels, found["mean"], found["std"])[0]
    ours = np.asarray(ours).transpose(2, 0, 1)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "kind", ["bilinear", "another mean", "cropped", "not normalized"]
)
def test_embeddings_equal_those_of_processor_and_model(folder, tmp_path, kind):
  place = tmp_path / "m"
  settings = {"size": SQUARE, **KINDS[kind]}
  _save(folder, place, _processor("Siglip", **settings))
  processor = transformers.AutoProcessor.from_pretrained(place)
  model = transformers.AutoModel.from_pretrained(place).eval()
  inputs = processor(
    text=TEXTS,
    images=[Image.fromarray(image) for image in _images()],
    padding="max_length",
    truncation=True,
    return_tensors="pt",
  )
  with torch.no_grad():
    expected = model(**inputs)
  ours = big_siglip.load(str(place))
  np.testing.assert_allclose(
    ours.embed_images(_images()), expected.image_embeds, atol=1e-5
  )
  np.testing.assert_allclose(
    ours.embed_texts(TEXTS), expected.text_embeds, atol=1e-5
  )


# A value of each key that is not its class's own.
OTHER = {
  "do_resize": False,
  "size": {"height": 64, "width": 64},
  "default_to_square": True,
  "crop_size": {"height": 20, "width": 20},
  "resample": 1,
  "do_rescale": False,
  "rescale_factor": 1.0,
  "do_normalize": False,
  "image_mean": [0.1, 0.2, 0.3],
  "image_std": [0.1, 0.2, 0.3],
  "pad_size": {"height": 999, "width": 999},
  "do_center_crop": True,
  "patch_size": 16,
  "max_num_patches": 256,
}
# Where a key says nothing alone.
BESIDE = {
  "crop_size": {"do_center_crop": True},
  "do_center_crop": {"size": {"height": 230, "width": 230}},
  "default_to_square": {"size": 64, "do_center_crop": True},
  "pad_size": {"do_pad": True},
  "do_pad": {"pad_size": {"height": 999, "width": 999}},
}


@pytest.mark.parametrize("name", ["Siglip", "Siglip2", "CLIP", "ViT"])
def test_every_key_of_a_processor_is_done_refused_or_harmless(name):
  keys = _processor(name).valid_kwargs.__annotations__
  assert len(keys) >= 20
  for key in keys:
    # Patches know no size, nor what goes with it.
    beside = {} if name == "Siglip2" else BESIDE.get(key, {})
    given = {"image_processor_type": f"{name}ImageProcessor", **beside}
    value = OTHER.get(key, True)
    if name == "Siglip2" and key in ("patch_size", "max_num_patches"):
      value = 9
    if (name, key) in (
      ("CLIP", "do_center_crop"),
      ("ViT", "default_to_square"),
    ):
      value = False
    base = _outcome({k: v for k, v in given.items() if k != key})
    other = _outcome({**given, key: value})
    if key in image_processor.HARMLESS or (
      name == "Siglip2" and key in ("default_to_square", "pad_size")
    ):
      assert other == base, key
    else:
      assert other != base, key


def _outcome(given):
  try:
    return image_processor.from_transformers(given, "file")
  except UserError as error:
    return str(error)


@pytest.mark.parametrize(
  ("given", "said"),
  [
    ({"size": {"height": 32, "width": 48}}, "size={'height': 32"),
    ({"size": {"shortest_edge": 32}}, "size={'shortest_edge': 32}: must be h"),
    ({"size": {"longest_edge": 32}}, "size={'longest_edge': 32}: must be a s"),
    ({"size": 32}, "size=32: must be height and width"),
    ({"size": {"height": 0, "width": 0}}, "size=0: must be pixels, 1 to"),
    ({"size": "large"}, "size='large': must be pixels"),
    ({"size": {"max_pixels": 9, "min_pixels": 1}}, "must be a square"),
    ({"resample": 6}, "resample=6: must be 0 to 5, or one of nearest"),
    ({"resample": "cubic"}, "resample='cubic': must be 0 to 5"),
    ({"image_mean": [0.5, 0.5]}, "image_mean=[0.5, 0.5]: must be one number"),
    ({"image_std": [0.5, 0.5, 0]}, "image_std=[0.5, 0.5, 0]: must be one"),
    ({"image_mean": [float("nan")] * 3}, "image_mean=[nan, nan, nan]: must"),
    ({"rescale_factor": 0}, "rescale_factor=0: must be a number above 0"),
    ({"rescale_factor": 1e-9}, "rescale_factor=1e-09: with image_mean and"),
    ({"do_resize": False}, "do_resize=False: must be true"),
    ({"do_normalize": "no"}, "do_normalize='no': must be true or false"),
    ({"do_pad": True, "pad_size": 40}, "pad_size=40: must be that of the"),
    ({"do_flip_channel_order": True}, "do_flip_channel_order=True: is not kn"),
    ({"crop_pct": 0.9}, "crop_pct=0.9: is not known here; take it out"),
    ({"image_processor_type": "ConvNextImageProcessor"}, "must be one of Sig"),
    (
      {**CROPPED, "size": {"shortest_edge": 1}},
      "crop_size=32: keeps 32 of 1 pixels",
    ),
  ],
)
def test_what_is_not_done_is_refused_by_name(given, said):
  with pytest.raises(UserError) as error:
    image_processor.from_transformers(given, "a/file.json")
  assert str(error.value).startswith("a/file.json: ")
  assert said in str(error.value)
  assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["Idefics3", "SmolVLM", "Llava_Onevision"])
def test_a_tower_of_tiles_sees_whole_images(name, caplog):
  processor = _processor(name)
  said = json.loads(processor.to_json_string())
  found = image_processor.from_transformers(said, "file")
  resize = "bicubic" if name.startswith("Llava") else "lanczos"
  mean = tuple(processor.image_mean)
  assert found["resize"] == resize and found["mean"] == mean
  assert "image_size" not in found and "crop" not in found
  assert "file: the tower sees whole images, no tiles" in caplog.text


def test_what_is_false_or_null_is_passed_over():
  given = {"do_reduce_labels": False, "crop_pct": None, "do_resize": None}
  assert image_processor.from_transformers(given, "file")["crop"] == "none"


def test_of_two_files_transformers_order_holds(folder, tmp_path, caplog):
  place = tmp_path / "m"
  shutil.copytree(folder, place)
  path = str(place)
  assert find_preprocessing(open_weights(path)).resize == "bicubic"
  assert "no file beside it says what happens to images" in caplog.text
  assert "says all; taken: lowercase=True, pad_id=1" in caplog.text
  file = place / "preprocessor_config.json"
  file.write_text(json.dumps({"resample": 2, "size": SQUARE}))
  assert find_preprocessing(open_weights(path)).resize == "bilinear"
  newer = place / "processor_config.json"
  newer.write_text(json.dumps({"processor_class": "SiglipProcessor"}))
  assert find_preprocessing(open_weights(path)).resize == "bilinear"
  inside = {"image_processor": {"resample": 0, "size": SQUARE}}
  newer.write_text(json.dumps(inside))
  assert find_preprocessing(open_weights(path)).resize == "nearest"
  inside["image_processor"]["size"] = {"height": 64, "width": 64}
  newer.write_text(json.dumps(inside))
  with pytest.raises(UserError, match="images of 64 pixels, and the model see"):
    find_preprocessing(open_weights(path))


# CRC-32 of the pixels of SHAPES, before they are normalized, as open_clip 3.3
# and timm 1.0.31 make them (torchvision 0.29, Pillow 13).
OPEN_CLIP = {
  ("squash", "bicubic"): 0x7C700638,
  ("squash", "bilinear"): 0x6D9BB0AD,
  ("shortest", "bicubic"): 0xCC3FA0F4,
  ("shortest", "bilinear"): 0xEBF7F1C0,
  ("longest", "bicubic"): 0xA0927721,
  ("longest", "bilinear"): 0xD1F23C47,
}
TIMM = {
  ("center", "bicubic", 0.9): 0x07BE3350,
  ("center", "lanczos", 1.0): 0xE58491DD,
  ("center", "hamming", 0.8): 0x2F9F6C72,
  ("squash", "lanczos", 1.0): 0x43D842D1,
  ("squash", "hamming", 0.8): 0x7BE14013,
  ("border", "bicubic", 0.9): 0x85F2105E,
  ("border", "lanczos", 1.0): 0x5251D7CD,
  ("border", "hamming", 0.8): 0xB46B547C,
}
OTHER_COLORS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}


def _sum(found):
  names = ("resize", "crop", "crop_fraction", "fill")
  square = Square(PIXELS, **{n: found[n] for n in names if n in found})
  total = 0
  for image in _images():
    total = zlib.crc32(square(image).tobytes(), total)
  return total


def _open_clip(folder, **preprocess):
  config = {
    "model_cfg": {"vision_cfg": {"image_size": PIXELS}},
    "preprocess_cfg": preprocess,
  }
  (folder / "open_clip_config.json").write_text(json.dumps(config))
  return image_transforms.read_open_clip(folder)


@pytest.mark.parametrize(("mode", "interpolation"), OPEN_CLIP)
def test_pixels_equal_those_of_open_clip(tmp_path, mode, interpolation):
  found = _open_clip(
    tmp_path,
    resize_mode=mode,
    interpolation=interpolation,
    fill_color=77,
    **OTHER_COLORS,
  )
  assert _sum(found) == OPEN_CLIP[mode, interpolation]
  assert found["mean"] == (0.1, 0.2, 0.3) and found["std"] == (0.4, 0.5, 0.6)


def test_open_clip_assumes_what_it_does_not_say(tmp_path):
  found = _open_clip(tmp_path)
  assert _sum(found) == OPEN_CLIP["shortest", "bicubic"]
  assert found["mean"] == (0.48145466, 0.4578275, 0.40821073)
  assert _open_clip(tmp_path, interpolation="random", mean=None) == found
  for given, said in (
    ({"mode": "L"}, "mode='L': must be RGB"),
    ({"resize_mode": "crop"}, "resize_mode='crop': must be one of squash, sh"),
    ({"interpolation": "box"}, "interpolation='box': must be one of bicubic"),
    ({"fill_color": 300}, "fill_color=300: must be whole numbers from 0 to"),
    ({"mean": "x"}, "mean='x': must be one number or three"),
    ({"timm_eval": 1}, "timm_eval=1: is not known here"),
  ):
    with pytest.raises(UserError) as error:
      _open_clip(tmp_path, **given)
    assert said in str(error.value)


@pytest.mark.parametrize(("mode", "interpolation", "share"), TIMM)
def test_pixels_equal_those_of_timm(mode, interpolation, share):
  given = {
    "input_size": [3, PIXELS, PIXELS],
    "crop_mode": mode,
    "interpolation": interpolation,
    "crop_pct": share,
    **OTHER_COLORS,
  }
  found = image_transforms.from_timm(given, "file")
  assert _sum(found) == TIMM[mode, interpolation, share]


# The fields of open_clip's PreprocessCfg and of timm's PretrainedCfg.
OPEN_CLIP_KEYS = "size mode mean std interpolation resize_mode fill_color"
TIMM_KEYS = """url file state_dict hf_hub_id hf_hub_filename source
architecture tag custom_load input_size test_input_size min_input_size
fixed_input_size interpolation crop_pct test_crop_pct crop_mode mean std
num_classes label_offset label_names label_descriptions pool_size test_pool_size
first_conv classifier license description origin_url paper_name paper_ids
notes"""
TIMM_OTHER = {
  "input_size": [3, 64, 64],
  "interpolation": "box",
  "crop_pct": 0.5,
  "crop_mode": "squash",
  "mean": [0.1],
  "std": [0.1],
}


def test_every_key_of_open_clip_and_timm_is_done_refused_or_harmless(tmp_path):
  base = _open_clip(tmp_path)
  other = {"mean": 0.1, "std": 0.1, "interpolation": "bilinear"}
  for key in OPEN_CLIP_KEYS.split():
    try:
      found = _open_clip(tmp_path, **{key: other.get(key, 9)})
    except UserError:
      continue
    assert (found != base) != (key == "size"), key  # The model's size holds.
  base = image_transforms.from_timm({}, "file")
  for key in TIMM_KEYS.split():
    found = image_transforms.from_timm({key: TIMM_OTHER.get(key, 9)}, "file")
    assert (found != base) != (key in image_transforms.TIMM_HARMLESS), key
  with pytest.raises(UserError, match="crop_pct=0.9: must leave an even bord"):
    odd = {"crop_mode": "squash", "crop_pct": 0.9, "input_size": [3, 32, 32]}
    image_transforms.from_timm(odd, "file")


def test_more_ids_than_the_model_embeds_are_named(folder, tmp_path):
  place = tmp_path / "m"
  shutil.copytree(folder, place)
  _words(place / "tokenizer.json", PIECES + 2)
  (place / "spiece.model").unlink()
  with pytest.raises(UserError) as error:
    find_preprocessing(open_weights(str(place)))
  said = "has 302 pieces, and the model embeds 300 ('w300' is the first withou"
  assert said in str(error.value)
  _words(place / "tokenizer.json", PIECES)
  found = find_preprocessing(open_weights(str(place)))
  assert found.pad_id == 1, "the end of a text"


def _words(file, count):
  """Writes a tokenizer of so many words."""
  words = {"<unk>": 0, "</s>": 1, **{f"w{n}": n for n in range(2, count)}}
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<unk>"))
  made.save(str(file))
