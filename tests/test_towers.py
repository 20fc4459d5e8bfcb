"""Image towers alone, as transformers saves them; transformers is the judge."""

import json
import operator

import jax
import model_cases
import numpy as np
from peers import torch, transformers
from PIL import Image
import programs
import pytest
import runs

import big_siglip
from big_siglip import sharding
from big_siglip.errors import UserError
from big_siglip.models import SigLIP
from big_siglip.trained import saved
from big_siglip.weights import big_vision, open_clip, open_weights
from big_siglip.weights.rules import write_params
from big_siglip.weights.tensors import save_safetensors

pytestmark = pytest.mark.torch

VISION = dict(
  hidden_size=32,
  intermediate_size=64,
  num_hidden_layers=2,
  num_attention_heads=2,
  image_size=56,
  patch_size=14,
)
LANGUAGE = dict(
  hidden_size=32,
  intermediate_size=64,
  num_hidden_layers=1,
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=16,
  vocab_size=100,
  pad_token_id=0,
  bos_token_id=1,
  eos_token_id=2,
)
TEXT = dict(LANGUAGE, max_position_embeddings=8, projection_size=32)
BARE = dict(VISION, vision_use_head=False, model_type="siglip_vision_model")


def _siglip(**vision):
  texts = {k: v for k, v in TEXT.items() if k in _TEXT_FIELDS}
  return transformers.SiglipConfig(
    vision_config=dict(VISION, **vision), text_config=texts
  )


_TEXT_FIELDS = (
  "hidden_size",
  "intermediate_size",
  "num_hidden_layers",
  "num_attention_heads",
  "vocab_size",
  "max_position_embeddings",
  "projection_size",
  "pad_token_id",
  "bos_token_id",
  "eos_token_id",
)


def _of(name, config, **fields):
  """Returns a model of random weights that holds a tower without a pool."""
  config = getattr(transformers, f"{name}Config")(**fields, **config)
  return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def _language(kind):
  return dict(LANGUAGE, model_type=kind)


def _vision(**changes):
  """Returns what makes a SiglipVisionModel, and what returns its tower."""
  config = {**VISION, **changes}
  return (
    lambda: transformers.SiglipVisionModel(
      transformers.SiglipVisionConfig(**config)
    ),
    lambda model: model,
  )


def _idefics(name, **changes):
  """The same of a model with the names of Idefics 3."""
  return (
    lambda: _of(
      name,
      dict(vision_config={**VISION, **changes}, text_config=_language("llama")),
      image_token_id=99,
    ),
    operator.attrgetter("model.vision_model"),
  )


# Each: a function that makes the model, and one that returns its image tower.
MODELS = {
  "vision model": _vision(),
  "MedSigLIP's size": _vision(image_size=448),
  "drops a border": _vision(image_size=60),
  "without a pool": _vision(vision_use_head=False),
  "classifier": (
    lambda: transformers.SiglipForImageClassification(_siglip()),
    operator.attrgetter("vision_model"),
  ),
  "PaliGemma": (
    lambda: _of(
      "PaliGemma",
      dict(vision_config=BARE, text_config=_language("gemma")),
      projection_dim=32,
      image_token_index=99,
    ),
    operator.attrgetter("model.vision_tower"),
  ),
  "Gemma 3": (
    lambda: _of(
      "Gemma3",
      dict(vision_config=BARE, text_config=LANGUAGE),
      mm_tokens_per_image=4,
      image_token_index=99,
    ),
    operator.attrgetter("model.vision_tower"),
  ),
  "LLaVA-OneVision": (
    lambda: _of(
      "LlavaOnevision",
      dict(vision_config=BARE, text_config=_language("qwen2")),
      image_token_index=99,
      video_token_index=98,
    ),
    operator.attrgetter("model.vision_tower"),
  ),
  "Idefics 3": _idefics("Idefics3"),
  "SmolVLM": _idefics("SmolVLM"),
  "SmolVLM, 27 patches": _idefics("SmolVLM", image_size=384),
}
POOLED = {"vision model", "MedSigLIP's size", "drops a border", "classifier"}


def _save(name, folder):
  """Saves a model of random weights; returns its image tower and its pixels."""
  torch.manual_seed(0)
  make, tower = MODELS[name]
  model = make().eval()
  with torch.no_grad():
    for parameter in model.parameters():  # Zeros would hide what is mixed up.
      parameter.add_(0.1 * torch.randn_like(parameter))
  model.save_pretrained(folder)
  tower = tower(model)
  return tower, tower.config.image_size


def _images(size, count=3):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (count, size, size, 3), np.uint8)


def _tokens(model, images):
  """The patches in a row, as transformers has them."""
  patches = model.embed_patches(images)
  return patches.reshape(len(patches), -1, patches.shape[-1])


def _outputs(tower, images):
  pixels = torch.tensor(images.transpose(0, 3, 1, 2) / 127.5 - 1).float()
  with torch.no_grad():
    return tower(pixel_values=pixels)


@pytest.mark.parametrize("name", MODELS)
def test_a_tower_equals_transformers(name, tmp_path):
  tower, size = _save(name, tmp_path / "hf")
  model = big_siglip.load(str(tmp_path / "hf"))
  assert "text" not in model.config.model
  assert "tokenizer" not in model.config.data
  images = _images(size)
  expected = _outputs(tower, images)
  tokens = _tokens(model, images)
  np.testing.assert_allclose(tokens, expected.last_hidden_state, atol=1e-5)
  if name in POOLED:
    pooled = expected.pooler_output.numpy()
    pooled /= np.linalg.norm(pooled, axis=-1, keepdims=True)
    np.testing.assert_allclose(model.embed_images(images), pooled, atol=1e-5)
  else:
    with pytest.raises(UserError) as error:
      model.embed_images(images)
    assert str(error.value).startswith(
      f"{tmp_path}/hf: its image tower has no pool: it has no embedding"
    )
  with pytest.raises(UserError, match="hf: is an image tower alone: it embeds"):
    model.embed_texts(["a dog"])


def test_older_files_name_their_towers_with_one_word_more(tmp_path):
  from safetensors.numpy import load_file, save_file

  for name, word, more in (
    ("vision model", "", "vision_model."),
    ("PaliGemma", "vision_tower.", "vision_tower.vision_model."),
    ("Gemma 3", "vision_tower.", "model.vision_tower.vision_model."),
  ):
    folder = tmp_path / name.replace(" ", "_")
    tower, size = _save(name, folder)
    file = folder / "model.safetensors"
    arrays = {
      more + key.removeprefix(word) if key.startswith(word) else key: array
      for key, array in load_file(file).items()
    }
    save_file(arrays, file)
    model = big_siglip.load(str(folder))
    np.testing.assert_allclose(
      _tokens(model, _images(size)),
      _outputs(tower, _images(size)).last_hidden_state,
      atol=1e-5,
    )


def test_a_tower_without_its_last_block_says_so(tmp_path):
  config = transformers.SiglipVisionConfig(
    **dict(
      VISION,
      hidden_size=1152,
      intermediate_size=4304,
      num_attention_heads=16,
      num_hidden_layers=1,
      image_size=28,
    ),
    vision_use_head=False,
  )
  transformers.SiglipVisionModel(config).save_pretrained(tmp_path)
  model = big_siglip.load(str(tmp_path))
  with pytest.raises(UserError) as error:
    model.embedder("images")
  assert "no pool and just 1 of the 27 blocks of So400m: it has no" in str(
    error.value
  )


@pytest.mark.parametrize("format", ["open_clip", "timm", "big_vision"])
def test_towers_of_other_projects(tmp_path, format):
  config = model_cases.model_config(dict(depth=2), embed_dim=32)
  params = jax.device_put(model_cases.random_params(SigLIP(config)))
  module = big_vision if format == "big_vision" else open_clip
  arrays = {
    key: np.asarray(array())
    for key, _, array in write_params(params, module.rules(config))
  }
  start = module.NAMING.image
  arrays = {k: v for k, v in arrays.items() if k.startswith(start)}
  if format == "timm":
    arrays = {k.removeprefix(start): v for k, v in arrays.items()}
    (tmp_path / "config.json").write_text('{"architecture": "vit_siglip"}')
  if format == "big_vision":  # As in PaliGemma's checkpoints.
    arrays = {k: v for k, v in arrays.items() if "MAPHead" not in k}
    arrays |= {"img/head/kernel": np.zeros((32, 8)), "llm/norm": np.zeros(2)}
    arrays = {f"params/{k}": v for k, v in arrays.items()}
    arrays |= {"opt/0/mu/img/embedding/kernel": np.zeros(2)}
    file = tmp_path / "m.npz"
    np.savez(file, **arrays)
  else:
    file = tmp_path / "m.safetensors"
    save_safetensors(
      file, [(k, v.shape, lambda v=v: v) for k, v in arrays.items()], {}
    )
  weights = open_weights(str(file))
  assert weights.model.image.pooling == (
    "none" if format == "big_vision" else "map"
  )
  again = saved.load(str(file), sharding.make_mesh())[1]
  wanted = dict(params["image"])
  if format == "big_vision":
    del wanted["pool"]
  runs.assert_same(runs.flatten(again), runs.flatten({"image": wanted}))


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
  """Returns folders of a vision model and of a PaliGemma, and of photos."""
  folder = tmp_path_factory.mktemp("towers")
  _save("vision model", folder / "vision")
  _save("PaliGemma", folder / "paligemma")
  (folder / "photos").mkdir()
  rows = ["image,caption"]
  for number, pixels in enumerate(_images(56, 16)):
    name = f"{number}.png"
    Image.fromarray(pixels).save(folder / "photos" / name)
    rows.append(f"{name},number {number}")
  (folder / "photos" / "captions.csv").write_text("\n".join(rows))
  return folder


def test_an_imported_tower_embeds_and_is_no_zero_shot_model(towers, tmp_path):
  model = tmp_path / "tower"
  status, output, said = programs.call(
    "tools/import_weights.py",
    f"--weights={towers}/vision",
    f"--output={model}",
    "--json",
  )
  assert status == 0, said
  answer = json.loads(output)
  assert answer["text"] is None
  assert answer["tokenizer"] is None
  assert "vision: holds an image tower alone" in said
  embedded = tmp_path / "embedded"
  embed = ("tools/embed.py", f"--images={towers}/photos")
  status, output, said = programs.call(
    *embed, f"--checkpoint={model}", f"--output={embedded}", "--json"
  )
  assert status == 0, said
  assert json.loads(output)["rows"] == 16
  for flags, what in (
    (("tools/classify.py", "--labels=a,b", f"{towers}/photos"), "no texts"),
    (("tools/embed.py", f"--texts={__file__}", "--output=x"), "no texts"),
    (
      ("tools/export_weights.py", "--format=huggingface", "--output=x"),
      "is an image tower alone, and exports are of whole models",
    ),
  ):
    said = programs.said_in_one_line(*flags, f"--checkpoint={model}")
    assert what in said, flags
  said = programs.said_in_one_line(
    *embed, f"--checkpoint={towers}/paligemma", f"--output={tmp_path}/none"
  )
  assert "has no pool" in said
  assert not (tmp_path / "none").exists()


def _train(towers, workdir, weights, *flags):
  return programs.call(
    "main.py",
    f"--config={runs.ROOT}/configs/lit.py",
    f"--config.init.path={towers}/{weights}",
    f"--config.data.path={towers}/photos",
    f"--workdir={workdir}",
    "--config.batch_size=8",
    "--config.total_steps=2",
    "--config.model.text.size=mu",
    "--config.model.dtype=float32",
    *flags,
  )


@pytest.mark.slow
def test_a_text_tower_is_trained_to_it(towers, tmp_path):
  tokenizer = "--config.data.tokenizer=bytes"
  status, _, said = _train(towers, tmp_path / "run", "vision", tokenizer)
  assert status == 0, said
  trained = big_siglip.load(str(tmp_path / "run"))
  tower = big_siglip.load(str(towers / "vision"))
  before, after = (runs.flatten(m.params["image"]) for m in (tower, trained))
  runs.assert_same(after, before)
  images = _images(56)
  np.testing.assert_array_equal(
    trained.embed_patches(images), tower.embed_patches(images)
  )
  assert trained.probabilities(images, ["a dog"]).shape == (3, 1)


def test_a_text_tower_is_trained_to_the_mean_where_there_is_no_pool(
  towers, tmp_path
):
  flags = ("--config.data.tokenizer=bytes", "--config.model.image.pooling=gap")
  status, output, said = _train(
    towers, tmp_path / "run", "paligemma", *flags, "--dry_run"
  )
  assert status == 0, said
  taken = len(runs.flatten(big_siglip.load(str(towers / "paligemma")).params))
  assert f"weights: {taken} of " in output + said


@pytest.mark.parametrize(
  ("weights", "flags", "said"),
  [
    ("vision", (), "config.data.tokenizer=None: must be set to bytes, a Sent"),
    (
      "vision",
      ("--config.init.towers=both", "--config.data.tokenizer=bytes"),
      "config.init.towers='both': must be 'image'",
    ),
    (
      "paligemma",
      ("--config.data.tokenizer=bytes",),
      "config.model.image.pooling=None: must be 'gap', the mean of the tokens",
    ),
  ],
)
def test_what_it_lacks_is_asked_for(towers, tmp_path, weights, flags, said):
  status, _, message = _train(towers, tmp_path / "run", weights, *flags)
  assert status == 2
  # What is assumed of their preprocessing is told once, by whoever asks first.
  *notes, line = programs.without_progress(message).splitlines()
  assert said in line
  assert all(note.startswith("W") and "taken: " in note for note in notes)


def test_towers_that_are_not_ours_are_named(tmp_path):
  clip = transformers.CLIPVisionConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=32,
    patch_size=8,
  )
  transformers.CLIPVisionModel(clip).save_pretrained(tmp_path / "clip")
  (tmp_path / "text").mkdir()
  texts = {"embeddings.token_embedding.weight": np.zeros((3, 32), np.float32)}
  save_safetensors(
    tmp_path / "text" / "model.safetensors",
    [(k, v.shape, lambda v=v: v) for k, v in texts.items()],
    {},
  )
  for name, said in (
    ("text", "holds a text tower alone; must hold an image tower"),
    ("clip", "model_type='clip_vision_model': must be 'siglip', or be or hold"),
  ):
    with pytest.raises(UserError) as error:
      open_weights(str(tmp_path / name))
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1
