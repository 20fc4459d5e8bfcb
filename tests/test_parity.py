"""Parity with transformers at full size, and of pixels and tokens; slow."""

import csv

import jax
from ml_collections import ConfigDict
import model_cases
import numpy as np
from peers import torch, transformers
from PIL import Image
import programs
import pytest
from test_models_reference import convert

import big_siglip
from big_siglip import sharding
from big_siglip.data.images import decode, resize
from big_siglip.data.text import SentencePieceTokenizer
from big_siglip.losses import sigmoid_loss
from big_siglip.models import SigLIP
from big_siglip.schema import sizes
from big_siglip.weights import export
from big_siglip.weights.model_config import make_model_config

pytestmark = pytest.mark.torch


def _published(name, image_size, text, vocab_size, length, depth=None):
  tower, _, patch = name.partition("/")
  shape = {**vars(sizes.TOWERS[tower]), "patch_size": int(patch)}
  text_shape = {**vars(sizes.TOWERS[text])}
  if depth:
    shape["depth"] = text_shape["depth"] = depth
  return make_model_config(
    image=sizes.TowerSize(**shape),
    image_size=image_size,
    text=sizes.TowerSize(**text_shape),
    vocab_size=vocab_size,
    length=length,
    embed_dim=shape["width"],
  )


# Full width at reduced depth; B/16 whole. The vocabulary does not compute.
@pytest.mark.slow
@pytest.mark.parametrize(
  "model",
  [
    ("B/16", 224, "B", 32_000, 64, None),
    ("B/32", 256, "B", 2_000, 64, 2),
    ("L/16", 256, "L", 2_000, 64, 2),
    ("So400m/14", 224, "So400m", 2_000, 16, 2),
    ("So400m/14", 384, "So400m", 2_000, 64, 2),
    ("So400m/16", 256, "So400m", 2_000, 64, 2),
    ("g-opt/16", 256, "So400m", 2_000, 64, 2),
  ],
  ids=lambda m: f"{m[0]}-{m[1]}",
)
def test_exported_models_equal_transformers(model, tmp_path):
  config = _published(*model)
  both = ConfigDict(
    {
      "model": config,
      "data": dict(
        tokenizer="bytes",
        lowercase=True,
        clean="none",
        pad_id=1,
        resize="bicubic",
      ),
    }
  )
  params = _random(config)
  export.to_huggingface(tmp_path / "hf", params, both)
  theirs = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()
  image, text = model_cases.example_inputs(config, batch=2)

  @jax.jit
  def run(params):
    def loss_fn(params):
      outputs = SigLIP(config).apply({"params": params}, image, text)
      return sigmoid_loss(*outputs), outputs

    return jax.value_and_grad(loss_fn, has_aux=True)(params)

  (loss, ours), gradients = run(params)
  pixels = image.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
  expected = theirs(
    input_ids=torch.tensor(text).long(),
    pixel_values=torch.tensor(pixels),
    return_loss=True,
  )
  expected.loss.backward()
  gradients_of = {name: p.grad for name, p in theirs.named_parameters()}
  _compare_gradients(gradients, convert(gradients_of, _with_sizes(config)))
  assert float(loss) == pytest.approx(float(expected.loss), rel=1e-5)
  for name in ("image_embeds", "text_embeds", "logits_per_image"):
    expected[name] = expected[name].detach()
  np.testing.assert_allclose(ours[0], expected.image_embeds, atol=1e-4)
  np.testing.assert_allclose(ours[1], expected.text_embeds, atol=1e-4)
  logits = np.exp(ours[2]) * ours[0] @ ours[1].T + ours[3]
  np.testing.assert_allclose(logits, expected.logits_per_image, atol=1e-4)


def _with_sizes(config):
  """Returns it with the numbers that a tower's name stands for."""
  config = config.copy_and_resolve_references()
  for tower, size in (
    (config.image, sizes.resolve_image(config.image)),
    (config.text, sizes.resolve_text(config.text)),
  ):
    tower.depth, tower.num_heads = size.depth, size.num_heads
  return config


def _compare_gradients(gradients, expected):
  """Within 1e-3 of each parameter's own gradient, as one vector."""
  assert jax.tree.structure(gradients) == jax.tree.structure(expected)
  largest = max(np.linalg.norm(x) for x in jax.tree.leaves(expected))
  ours = jax.tree_util.tree_leaves_with_path(gradients)
  for (path, a), e in zip(ours, jax.tree.leaves(expected), strict=True):
    error, norm = np.linalg.norm(a - e), np.linalg.norm(e)
    # The gradient of a key's bias is 0: a softmax sees no common shift.
    assert error <= 1e-3 * norm + 1e-6 * largest, jax.tree_util.keystr(path)


def _random(config):
  """Initial values, with noise so that no bias hides at zero."""
  image, text = model_cases.example_inputs(config, batch=1)
  init = jax.jit(SigLIP(config).init)
  params = init(jax.random.key(0), image, text)["params"]
  rng = np.random.default_rng(0)

  def add_noise(x):
    return np.asarray(x) + 0.02 * rng.standard_normal(x.shape, np.float32)

  params = jax.tree.map(add_noise, params)
  params["logit_scale"], params["logit_bias"] = np.float32([4.6, -10.0])
  return params


@pytest.mark.slow
@pytest.mark.parametrize(
  ("method", "resample"), [("bicubic", 3), ("bilinear", 2)]
)
def test_pixels_equal_the_processors_within_a_grey_level(
  shared_data, method, resample
):
  processor = transformers.SiglipImageProcessor(
    size={"height": 384, "width": 384}, resample=resample
  )
  worst = []
  for file in sorted((shared_data / "photos_full").glob("*.*")):
    data = file.read_bytes()
    ours = resize(decode(data), 384, method)
    theirs = processor(Image.open(file).convert("RGB"), return_tensors="np")
    theirs = theirs["pixel_values"][0].transpose(1, 2, 0)
    worst.append(np.abs((theirs + 1) * 127.5 - ours).max())
  assert len(worst) == 100
  assert max(worst) <= 1.001, sorted(worst)[-5:]


def test_tokens_of_real_captions_equal_the_tokenizers(shared_data, tmp_path):
  spiece = shared_data / "tokenizers" / "sentencepiece_test_1k.model"
  ours = SentencePieceTokenizer(str(spiece))
  ours.pad_id = ours.eos_id
  config = model_cases.model_config({}, dict(vocab_size=1_000, length=64))
  config.embed_dim = 32
  data = dict(
    tokenizer=str(spiece),
    lowercase=True,
    clean="none",
    pad_id=ours.eos_id,
    resize="bicubic",
  )
  params = model_cases.random_params(SigLIP(config))
  both = ConfigDict({"model": config, "data": data})
  export.to_huggingface(tmp_path / "hf", params, both)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
  with (shared_data / "flickr1k" / "captions.csv").open() as file:
    captions = [row["caption"] for row in csv.DictReader(file)][:1000]
  assert len(captions) == 1000
  expected = theirs(
    captions, padding="max_length", truncation=True, max_length=64
  )
  np.testing.assert_array_equal(ours(captions, 64), expected["input_ids"])
  # SiglipTokenizer reads the folder too; it strips punctuation, which SigLIP's
  # training did not.
  slow = transformers.SiglipTokenizer.from_pretrained(tmp_path / "hf")
  expected = slow(
    captions, padding="max_length", truncation=True, max_length=64
  )
  ours.clean = "canonical"
  np.testing.assert_array_equal(ours(captions, 64), expected["input_ids"])


@pytest.mark.slow
def test_from_a_foreign_folder_to_a_finetuned_one(tmp_path, shared_data):
  """Import, evaluate, fine-tune on real photos, export, load elsewhere."""
  from test_models_reference import make_config, make_reference

  theirs = make_reference(make_config("B"))
  theirs.save_pretrained(tmp_path / "foreign")
  # Its vocabulary is smaller than that of bytes: a new tokenizer.
  settings = dict(
    init__path=str(tmp_path / "foreign"),
    total_steps=3,
    data__name="folder",
    data__path=str(shared_data / "flickr1k"),
    data__split="test",
    evals__test__kind="retrieval",
    evals__test__data="folder",
    evals__test__path=str(shared_data / "flickr1k"),
    evals__test__split="test",
    evals__test__batch_size=50,
    model__image__size="B/16",
    model__image__image_size=48,
    model__image__patch_size=16,
    model__image__pooling="map",
    model__image__width=256,
    model__image__mlp_dim=1024,
    model__image__num_heads=4,
    model__image__depth=2,
    model__text__width=256,
    model__text__mlp_dim=1024,
    model__text__num_heads=4,
    model__text__depth=2,
    model__text__length=8,
    checkpoint__every=3,
  )
  status, output = programs.train(tmp_path / "run", **settings)
  assert status == 0, output
  assert "evals/test/image_to_text/recall@1" in output
  assert "text/token_embedding/embedding is resampled" in output
  status, output, message = programs.call(
    "tools/export_weights.py",
    f"--checkpoint={tmp_path}/run",
    f"--output={tmp_path}/exported",
  )
  assert status == 0, message
  again = transformers.AutoModel.from_pretrained(tmp_path / "exported").eval()
  ours = big_siglip.load(str(tmp_path / "run"))
  files = sorted((shared_data / "photos").glob("*.jpg"))[:2]
  texts = ["a dog", "a fish"]
  pixels = np.stack([ours.prepare_image(file) for file in files])
  pixels = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
  with torch.no_grad():
    expected = again(
      input_ids=torch.tensor(ours.preprocess.tokenizer(texts, 8)).long(),
      pixel_values=torch.tensor(pixels),
    ).logits_per_image
  np.testing.assert_allclose(ours.logits(files, texts), expected, atol=1e-4)
  assert sharding.make_mesh().size == 8
