"""Weights go in and out without losing a bit; transformers is the judge."""

import itertools
import json
import pathlib
import pickle
import re

import jax
import model_cases
import numpy as np
from peers import torch, transformers
from PIL import Image
import programs
import pytest
import runs
from test_models_reference import CASES, make_config, make_reference

import big_siglip
from big_siglip import sharding
from big_siglip.data.text import SentencePieceTokenizer
from big_siglip.errors import UserError
from big_siglip.models import SigLIP
from big_siglip.trained.saved import load_weights
from big_siglip.weights import big_vision, export, huggingface, open_weights
from big_siglip.weights.npz import save_npz
from big_siglip.weights.preprocessing import find_preprocessing
from big_siglip.weights.rules import write_params
from big_siglip.weights.tensors import save_safetensors

pytestmark = pytest.mark.torch

CAPTIONS = ["a dog", "two red circles left of a blue square", "Ünïcode!"]


def _config(model, tokenizer="bytes", pad_id=1, resize="bicubic"):
  from ml_collections import ConfigDict

  data = dict(
    tokenizer=tokenizer,
    lowercase=True,
    clean="none",
    pad_id=pad_id,
    resize=resize,
  )
  return ConfigDict(dict(model=model, data=data))


def _random(scan=True, text=None):
  model = model_cases.model_config(
    dict(depth=3), dict(depth=2, **(text or {})), scan=scan, embed_dim=32
  )
  params = jax.device_put(model_cases.random_params(SigLIP(model)))
  return params, _config(model)


def _read(path, scan=True):
  weights = open_weights(str(path))
  weights.model.scan = scan
  config = _config(weights.model)
  return load_weights(weights, config, sharding.make_mesh()), weights


@pytest.mark.parametrize(
  ("name", "scan", "head"),
  [
    *itertools.product(sorted(export.FORMATS), [True, False], [True]),
    ("big_vision", True, False),  # As the i18n So400m.
    ("open_clip", True, False),
  ],
)
def test_out_and_in_again_gives_the_same_bits(tmp_path, name, scan, head):
  # 3 heads of 16: no published tower's.
  own = dict(width=48, num_heads=3, mlp_dim=96) if head else {}
  params, config = _random(scan, text=dict(head=head, vocab_size=259, **own))
  suffix = {"big_vision": "m.npz", "open_clip": "m.safetensors"}.get(name, "m")
  export.FORMATS[name](tmp_path / suffix, params, config)
  again, weights = _read(tmp_path / suffix, scan)
  assert weights.format == name
  assert find_preprocessing(weights).tokenizer == "bytes"
  runs.assert_same(runs.flatten(again), runs.flatten(params))


@pytest.mark.parametrize("name", sorted(CASES))
def test_weights_of_transformers_give_its_embeddings(tmp_path, name):
  theirs = make_reference(make_config(name))
  theirs.save_pretrained(tmp_path / "hf")
  params, weights = _read(tmp_path / "hf")
  rng = np.random.default_rng(0)
  model = weights.model
  size = model.image.image_size
  image = rng.uniform(-1, 1, (3, size, size, 3)).astype(np.float32)
  text = rng.integers(0, model.text.vocab_size, (3, model.text.length))
  ours = jax.jit(SigLIP(model).apply)({"params": params}, image, np.int32(text))
  with torch.no_grad():
    expected = theirs(
      input_ids=torch.tensor(text),
      pixel_values=torch.tensor(image.transpose(0, 3, 1, 2)),
    )
  np.testing.assert_allclose(ours[0], expected.image_embeds, atol=1e-5)
  np.testing.assert_allclose(ours[1], expected.text_embeds, atol=1e-5)
  logits = np.exp(ours[2]) * ours[0] @ ours[1].T + ours[3]
  np.testing.assert_allclose(logits, expected.logits_per_image, atol=1e-4)


def _tensors(tmp_path):
  params, config = _random()
  rules = big_vision.rules(config.model)
  return params, config, list(write_params(params, rules))


def test_big_vision_may_stack_its_layers_and_name_them_plainly(tmp_path):
  params, config, _ = _tensors(tmp_path)
  for stacked in (("image",), ("text",), ("image", "text")):
    rules = big_vision.rules(config.model, stacked)
    save_npz(tmp_path / "m.npz", write_params(params, rules))
    again, weights = _read(tmp_path / "m.npz")
    assert big_vision.stacked_towers(weights.reader.shapes()) == stacked
    runs.assert_same(runs.flatten(again), runs.flatten(params))


def test_big_vision_bfloat16_and_doubled_positions(tmp_path):
  import ml_dtypes

  params, config, tensors = _tensors(tmp_path)
  arrays = {
    f"params/{key}": array().astype(ml_dtypes.bfloat16)
    for key, _, array in tensors
  }
  extra = np.full_like(arrays["params/txt/pos_embedding"], 0.5)
  arrays["params/txt/Encoder_0/pos_embedding"] = extra
  # numpy writes a type that it does not know as two bytes, as big_vision's are.
  np.savez(
    tmp_path / "m.npz",
    **{key: value.view("V2") for key, value in arrays.items()},
  )
  again, _ = _read(tmp_path / "m.npz")
  got, wanted = runs.flatten(again), runs.flatten(params)
  for path, array in wanted.items():
    rounded = array.astype(ml_dtypes.bfloat16)
    if path == "text/position_embedding":
      rounded = rounded + ml_dtypes.bfloat16(0.5)
    np.testing.assert_array_equal(got[path], rounded.astype(np.float32))


def test_a_text_tower_without_a_head_is_exported_with_an_identity(tmp_path):
  params, config = _random(text=dict(head=False))
  export.to_huggingface(tmp_path / "hf", params, config)
  theirs = transformers.AutoModel.from_pretrained(tmp_path / "hf")
  image, text = model_cases.example_inputs(config.model)
  ours = jax.jit(SigLIP(config.model).apply)({"params": params}, image, text)
  with torch.no_grad():
    got = theirs.get_text_features(input_ids=torch.tensor(text).long())
  got = getattr(got, "pooler_output", got)
  got = got / got.norm(dim=-1, keepdim=True)
  np.testing.assert_allclose(got, ours[1], atol=1e-5)


@pytest.mark.parametrize("name", sorted(export.FORMATS))
def test_the_preprocessing_goes_out_and_comes_in(
  tmp_path, shared_data, caplog, name
):
  model = model_cases.model_config(
    dict(image_size=20, drop_border=True),  # 4 pixels that no patch covers.
    dict(vocab_size=1_000),
    embed_dim=32,
  )
  spiece = shared_data / "tokenizers" / "sentencepiece_test_1k.model"
  config = _config(model, str(spiece), pad_id=0, resize="big_vision")
  config.data.update(lowercase=False, clean="html")
  suffix = {"big_vision": "m.npz", "open_clip": "m.safetensors"}.get(name, "m")
  params = model_cases.random_params(SigLIP(model))
  export.FORMATS[name](tmp_path / "out" / suffix, params, config)
  moved = tmp_path / "moved"
  (tmp_path / "out").rename(moved)
  weights = open_weights(str(moved / suffix))
  assert weights.model.image.image_size == 20
  assert weights.model.image.drop_border
  found = find_preprocessing(weights)
  copy = pathlib.Path(found.tokenizer)
  assert copy.read_bytes() == spiece.read_bytes()
  assert moved in copy.parents
  assert found.data_fields() == dict(
    lowercase=False,
    clean="html",
    pad_id=0,
    resize="big_vision",
    crop="none",
    crop_fraction=1.0,
    fill=(0, 0, 0),
    tokenizer=str(copy),
  )
  said = "does not do config.data.resize='big_vision'" in caplog.text
  assert said == (name == "huggingface")
  (file,) = moved.rglob("*preprocessing.json")
  text = file.read_text()
  for spoilt, what in (
    ('"image_size": 40', "image_size=40 is said beside it"),
    ('"image_size": true', "image_size=True: must be a whole number"),
    ('"lowercase": 1', "lowercase=1: must be true or false"),
    ('"clean": []', "clean=[]: must be one of none, html"),
    ('"tokenizer": "../x"', "tokenizer='../x': must be bytes or a file"),
  ):
    if name == "huggingface" and spoilt.endswith("40"):
      continue  # Its config.json says so already.
    key = spoilt.partition(":")[0]
    file.write_text(re.sub(rf"{key}: [^,\n]+", spoilt, text))
    with pytest.raises(UserError) as error:
      open_weights(str(moved / suffix))
    assert what in str(error.value)


def test_open_clip_says_pixels_and_resizing_beside_its_weights(tmp_path):
  params, config = _random()
  export.to_open_clip(tmp_path / "m.safetensors", params, config)
  (tmp_path / "m.preprocessing.json").unlink()
  file = tmp_path / "open_clip_config.json"
  settings = dict(
    model_cfg=dict(vision_cfg=dict(image_size=20)),
    preprocess_cfg=dict(interpolation="bilinear", resize_mode="squash"),
  )
  file.write_text(json.dumps(settings))
  weights = open_weights(str(tmp_path))
  assert weights.model.image.image_size == 20
  assert weights.model.image.drop_border
  assert weights.preprocessing["resize"] == "bilinear"
  file.write_text("{}")
  with pytest.raises(
    UserError, match="open_clip_config.json: model_cfg=None: must"
  ):
    open_weights(str(tmp_path))


def test_weights_land_on_the_mesh_in_their_shards(tmp_path):
  params, config = _random()
  export.to_big_vision(tmp_path / "m.npz", params, config)
  weights = open_weights(str(tmp_path / "m.npz"))
  mesh = sharding.make_mesh(fsdp=4, tensor=2, data=1)
  placed = load_weights(weights, _config(weights.model), mesh)
  specs = {x.sharding.is_fully_replicated for x in jax.tree.leaves(placed)}
  assert False in specs
  runs.assert_same(runs.flatten(placed), runs.flatten(params))


def _write_another_kind(kind, tmp_path):
  """Writes no weights at all; returns (path, what the error says)."""
  if kind == "pickle":
    (tmp_path / "model.bin").write_bytes(pickle.dumps({"a": 1}))
    return tmp_path / "model.bin", "pickled code, which is never loaded"
  if kind == "pickle in a folder":
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    return tmp_path / "hf", "no safetensors file, but pytorch_model.bin, pick"
  if kind == "an empty folder":
    return tmp_path, "holds no run and no safetensors file"
  if kind == "pickle as npz":
    np.savez(tmp_path / "m.npz", **{"t": np.array([{}], object)})
    return tmp_path / "m.npz", "holds Python objects, which are never loaded"
  if kind == "text as npz":
    (tmp_path / "m.npz").write_text("hello")
    return tmp_path / "m.npz", "is no whole .npz file"
  if kind == "text as safetensors":
    (tmp_path / "m.safetensors").write_text("hello, this is no model")
    return tmp_path / "m.safetensors", "is no safetensors file"
  return tmp_path / "nowhere", "no such file or folder"


def _spoil(kind, folder):
  """Spoils a folder of transformers; returns what the error says."""
  params, config = _random()
  export.to_huggingface(folder, params, config)
  file = folder / "model.safetensors"
  rules = huggingface.rules(config.model)
  arrays = [[key, s, array()] for key, s, array in write_params(params, rules)]
  if kind == "truncated":
    file.write_bytes(file.read_bytes()[:-100])
    return "is truncated: "
  if kind == "architecture":
    settings = json.loads((folder / "config.json").read_text())
    settings["model_type"] = "clip"
    (folder / "config.json").write_text(json.dumps(settings))
    return "model_type='clip': must be 'siglip'"
  if kind == "missing":
    said = f"{arrays.pop(7)[0]}: missing"
  elif kind == "surplus":
    arrays.append(["more", (1,), np.zeros(1)])
    said = "more: surplus"
  elif kind == "shape":
    arrays[-1][1:] = (2,), np.zeros(2)
    said = "logit_bias: has shape [2], must have [1]"
  else:
    arrays[4][2] = np.full(arrays[4][1], np.nan)
    said = f"{arrays[4][0]} holds numbers that are not finite"
  save_safetensors(file, [(key, s, lambda a=a: a) for key, s, a in arrays], {})
  return said


OTHER_KINDS = [
  "pickle",
  "pickle as npz",
  "pickle in a folder",
  "an empty folder",
  "text as npz",
  "text as safetensors",
]


@pytest.mark.parametrize("kind", [*OTHER_KINDS, "nothing"])
def test_what_is_no_weights_is_said_so(kind, tmp_path):
  path, said = _write_another_kind(kind, tmp_path)
  with pytest.raises(UserError) as error:
    _read(path)
  assert said in str(error.value)
  assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
  "kind",
  ["truncated", "architecture", "missing", "surplus", "shape", "NaN"],
)
def test_bad_weights_are_named_with_what_is_wrong(kind, tmp_path):
  said = _spoil(kind, tmp_path / "hf")
  with pytest.raises(UserError) as error:
    _read(tmp_path / "hf")
  assert said in str(error.value)
  assert len(str(error.value).splitlines()) == 1


def test_a_sharded_folder_of_safetensors_is_one_model(tmp_path):
  theirs = make_reference(make_config("B"))
  theirs.save_pretrained(tmp_path / "one")
  theirs.save_pretrained(tmp_path / "many", max_shard_size="1MB")
  assert (tmp_path / "many" / "model.safetensors.index.json").exists()
  one, many = (_read(tmp_path / name)[0] for name in ("one", "many"))
  runs.assert_same(runs.flatten(many), runs.flatten(one))
  index = tmp_path / "many" / "model.safetensors.index.json"
  settings = json.loads(index.read_text())
  (tmp_path / "many" / "more.safetensors").write_bytes(
    (tmp_path / "one" / "model.safetensors").read_bytes()
  )
  settings["weight_map"]["more"] = "more.safetensors"
  index.write_text(json.dumps(settings))
  with pytest.raises(UserError, match="stands in another file as well"):
    _read(tmp_path / "many")


def test_a_model_in_use_equals_transformers_with_its_own_processor(
  tmp_path, shared_data
):
  spiece = shared_data / "tokenizers" / "sentencepiece_test_1k.model"
  tokenizer = SentencePieceTokenizer(str(spiece))
  model = model_cases.model_config(
    dict(size="mu/16", image_size=96),
    dict(vocab_size=1_000, length=16),
    embed_dim=32,
  )
  params = model_cases.random_params(SigLIP(model))
  folder = tmp_path / "hf"
  config = _config(model, str(spiece), pad_id=tokenizer.eos_id)
  export.to_huggingface(folder, params, config)
  theirs = transformers.AutoModel.from_pretrained(folder)
  processor = transformers.AutoProcessor.from_pretrained(folder)
  files = sorted((shared_data / "photos").glob("*.jpg"))[:3]
  texts = ["a dog", "two people on a beach"]
  inputs = processor(
    text=texts,
    images=[Image.open(file) for file in files],
    padding="max_length",
    return_tensors="pt",
  )
  ours = big_siglip.load(str(folder))
  ours.preprocess.tokenizer.pad_id = tokenizer.eos_id
  ids = ours.preprocess.tokenizer(texts, 16)
  np.testing.assert_array_equal(ids, inputs["input_ids"])
  pixels = np.stack([ours.prepare_image(file) for file in files])
  seen = (inputs["pixel_values"].numpy().transpose(0, 2, 3, 1) + 1) * 127.5
  assert np.abs(pixels - seen).max() <= 1.001
  with torch.no_grad():
    logits = theirs(**inputs).logits_per_image.numpy()
  got = ours.logits(files, texts)
  np.testing.assert_allclose(got, logits, atol=0.1)
  np.testing.assert_allclose(
    ours.probabilities(files, texts), 1 / (1 + np.exp(-got)), rtol=1e-5
  )


def _import(run, tmp_path, shared_data, *flags, vocab_size=1_000):
  """Imports a repository of the hub that was fetched before."""
  model = model_cases.model_config(
    {}, dict(vocab_size=vocab_size), embed_dim=32
  )
  params = model_cases.random_params(SigLIP(model))
  repository = tmp_path / "hub" / "models--someone--siglip"
  folder = repository / "snapshots" / "0123abcd"
  export.to_huggingface(folder, params, _config(model))
  (folder / "preprocessing.json").unlink()  # Others write none.
  (folder / "tokenizer.json").unlink()
  (repository / "refs").mkdir(exist_ok=True)
  (repository / "refs" / "main").write_text("0123abcd")
  spiece = shared_data / "tokenizers" / "sentencepiece_test_1k.model"
  return params, run(
    "tools/import_weights.py",
    "--weights=someone/siglip",
    f"--output={tmp_path}/model",
    *(flags or (f"--tokenizer={spiece}",)),
  )


@pytest.fixture
def hub(tmp_path, monkeypatch):
  from huggingface_hub import constants

  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
  # Read when the library is imported, which in this process it is already.
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_an_imported_repository_is_a_model_that_evaluates(
  tmp_path, shared_data, hub
):
  params, (status, output, message) = _import(
    programs.start, tmp_path, shared_data
  )
  assert status == 0, message
  assert "huggingface" in output
  ours = big_siglip.load(str(tmp_path / "model"))
  runs.assert_same(runs.flatten(ours.params), runs.flatten(params))
  assert ours.preprocess.value.resize == "bicubic"
  assert (tmp_path / "model" / "tokenizer.model").exists()
  file = tmp_path / "m.npz"
  flags = "--checkpoint=" + str(tmp_path / "model"), f"--output={file}"
  status, _, message = programs.call(
    "tools/export_weights.py", *flags, "--format=big_vision"
  )
  assert status == 0, message
  evaluate = "tools/evaluate.py", f"--checkpoint={file}"
  message = programs.said_in_one_line(*evaluate, f"--config={runs.CONFIG}")
  assert "config.data.resize='bilinear', not 'bicubic'" in message
  evals = tmp_path / "evals.py"
  evals.write_text(
    (runs.ROOT / "configs" / "evals" / "digits.py")
    .read_text()
    .replace("  c.fewshot", "  return c\n  c.fewshot")  # The others take long.
  )
  status, output, message = programs.call(*evaluate, f"--evals={evals}")
  assert status == 0, message
  assert "\n  zeroshot: 360 images, 95% intervals\n    accuracy " in output
  status, _, message = _import(programs.call, tmp_path, shared_data)[1]
  assert status == 2, "never written over"
  *said, error = message.splitlines()
  assert "holds a run already" in error
  # What is assumed of the tokenizer that was named.
  assert all("no file beside it says" in line for line in said)


@pytest.mark.parametrize(
  ("flags", "vocab_size", "said"),
  [
    ((), 500, "has 1,000 pieces, and the model embeds 500"),
    (("--json",), 1_000, "no tokenizer lies beside it"),
    (("--tokenizer=nowhere.model",), 1_000, "no such file"),
  ],
)
def test_a_tokenizer_that_does_not_fit_is_named(
  tmp_path, shared_data, hub, flags, vocab_size, said
):
  _, message = _import(
    programs.said_in_one_line,
    tmp_path,
    shared_data,
    *flags,
    vocab_size=vocab_size,
  )
  assert said in message
