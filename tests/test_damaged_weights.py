"""Weights that are damaged, or are no weights: one clear line for each."""

import io
import json
import pathlib
import pickle
import shutil
import zipfile

import jax
from ml_collections import ConfigDict
import model_cases
import numpy as np
import pytest

from big_siglip import sharding
from big_siglip.errors import UserError
from big_siglip.models import SigLIP
from big_siglip.trained import saved
from big_siglip.weights import export

DATA = dict(
  tokenizer="bytes", lowercase=True, clean="none", pad_id=1, resize="bicubic"
)
SHARD = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """The same parameters as transformers and as big_vision keep them."""
  folder = tmp_path_factory.mktemp("damaged")
  model = model_cases.model_config(embed_dim=32)
  params = jax.device_put(model_cases.random_params(SigLIP(model)))
  config = ConfigDict(dict(model=model, data=DATA))
  export.to_huggingface(folder / "hf", params, config)
  export.to_big_vision(folder / "bv.npz", params, config)
  return folder


@pytest.fixture
def model_folder(tmp_path):
  """A folder of our own, to be spoiled."""
  model = model_cases.model_config(
    text=dict(vocab_size=259, length=8), embed_dim=32
  )
  params = jax.device_put(model_cases.random_params(SigLIP(model)))
  model_cases.save_model(
    tmp_path / "m",
    params,
    model,
    DATA,
  )
  return tmp_path / "m"


def error_of(path):
  with pytest.raises(UserError) as error:
    saved.load(str(path), sharding.make_mesh(), tokenizer=False)
  said = str(error.value)
  assert len(said.splitlines()) == 1
  return said


def _archive(entries, **options):
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w", **options) as file:
    for name, content in entries:
      file.writestr(name, content)
  return stream.getvalue()


def _safetensors(header):
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  return len(header).to_bytes(8, "little") + header + bytes(8)


def _one(shape, start=0, end=4, dtype="F32"):
  entry = dict(dtype=dtype, shape=shape, data_offsets=[start, end])
  return _safetensors({"a": entry})


NO_SAFETENSORS = {
  "nothing": (b"", "or is truncated"),
  "text": (b"hello, this is no model", "or is truncated"),
  "pickle": (pickle.dumps({"a": 1}) * 9, "or is truncated"),
  "zip": (_archive([("archive/data.pkl", b"x")]), "or is truncated"),
  "nested": (_safetensors(b"[" * 100_000), "is no safetensors file"),
  "a list": (_safetensors([]), "is no safetensors file"),
  "infinite": (_one([float("inf")]), "is no safetensors file"),
  "half a byte": (_one([1], 0.5, 4.5), "is no safetensors file"),
  "negative": (_one([-1, -1]), "a has 4 bytes for shape [-1, -1]"),
  "huge": (_one([10**30]), "a has 4 bytes for shape"),
  "beyond": (_one([9], 0, 36), "is truncated: a ends beyond the file"),
  "twice": (
    _safetensors(b'{"a":{"dtype":"F32"},"a":{"dtype":"F32"}}'),
    "is no safetensors file",
  ),
  "more": (_one([1]), "not all of it is named"),
}


@pytest.mark.parametrize("kind", NO_SAFETENSORS)
def test_no_safetensors(place, tmp_path, kind):
  content, said = NO_SAFETENSORS[kind]
  shutil.copytree(place / "hf", tmp_path / "hf")
  (tmp_path / "hf" / SHARD).write_bytes(content)
  assert said in error_of(tmp_path / "hf")


def test_types_that_are_not_read_matter_where_they_are_asked_for(
  place, tmp_path
):
  shutil.copytree(place / "hf", tmp_path / "hf")
  file = tmp_path / "hf" / SHARD
  whole = file.read_bytes()
  length = int.from_bytes(whole[:8], "little")
  header = json.loads(whole[8 : 8 + length])
  header.pop("__metadata__", None)
  name = "vision_model.post_layernorm.weight"
  header[name]["dtype"] = "F8_E4M3"
  text = json.dumps(header).encode()
  rest = whole[8 + length :]
  file.write_bytes(len(text).to_bytes(8, "little") + text + rest)
  assert f"{name} has dtype F8_E4M3; known: F64, " in error_of(tmp_path / "hf")
  # As a language model's arrays beside an image tower.
  names = {k: v for k, v in header.items() if not k.startswith("vision_model.")}
  towers = {k: v for k, v in header.items() if k.startswith("vision_model.")}
  towers[name]["dtype"] = "F32"
  language = {f"language.{k}": {**v, "dtype": "U8"} for k, v in names.items()}
  text = json.dumps({**towers, **language}).encode()
  file.write_bytes(len(text).to_bytes(8, "little") + text + rest)
  settings = json.loads((tmp_path / "hf" / "config.json").read_text())
  settings["architectures"] = ["SiglipForImageClassification"]
  (tmp_path / "hf" / "config.json").write_text(json.dumps(settings))
  (tmp_path / "hf" / "preprocessing.json").unlink()
  _, params = saved.load(str(tmp_path / "hf"), sharding.make_mesh())
  assert params.keys() == {"image"}


FILES = {
  "config nested": ("config.json", b"[" * 100_000, "is not JSON"),
  "config binary": ("config.json", b"\xff\xfe", "is not JSON"),
  "config a list": ("config.json", b"[]", "must be a JSON object"),
  "index binary": (INDEX, b"\xff", "is not JSON"),
  "index of numbers": (INDEX, b'{"weight_map":{"a":1}}', "is no index of"),
  "index elsewhere": (
    INDEX,
    b'{"weight_map":{"a":"../hf/model.safetensors"}}',
    "which is missing",
  ),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_beside_it(place, tmp_path, kind):
  name, content, said = FILES[kind]
  shutil.copytree(place / "hf", tmp_path / "hf")
  (tmp_path / "hf" / name).write_bytes(content)
  if name == INDEX:  # The file itself goes before an index, as elsewhere.
    assert saved.open_model(str(tmp_path / "hf"), tokenizer=False)
    (tmp_path / "hf" / SHARD).unlink()
  assert said in error_of(tmp_path / "hf")


def test_a_folder_in_a_files_place(place, tmp_path):
  shutil.copytree(place / "hf", tmp_path / "hf")
  (tmp_path / "hf" / SHARD).unlink()
  (tmp_path / "hf" / SHARD).mkdir()
  assert f"{SHARD}: is no file" in error_of(tmp_path / "hf")


@pytest.mark.parametrize("value", [None, "768", -1, 0, 1.5, True, {}, 10**12])
@pytest.mark.parametrize(
  "field",
  ["vision_config.hidden_size", "text_config.num_hidden_layers", "text_config"],
)
def test_config_json_must_hold_whole_numbers(place, tmp_path, field, value):
  if field == "text_config" and value == {}:
    value = []  # An empty object means transformers' own defaults.
  shutil.copytree(place / "hf", tmp_path / "hf")
  file = tmp_path / "hf" / "config.json"
  config = json.loads(file.read_text())
  section, _, name = field.partition(".")
  if name:
    config[section][name] = value
  else:
    config[section] = value
  file.write_text(json.dumps(config))
  said = error_of(tmp_path / "hf")
  assert f"config.json: {field}" in said
  assert "must be a" in said


def _damage(kind, content):
  """Returns a spoiled .npz, of a good one."""
  with zipfile.ZipFile(io.BytesIO(content)) as file:
    arrays = [(name, file.read(name)) for name in file.namelist()]
  packed = _archive(arrays, compression=zipfile.ZIP_DEFLATED)
  central = packed.index(b"PK\x01\x02")
  if kind == "cut off":
    return content[:-1]
  if kind == "one bit":
    return _archive(arrays).replace(arrays[5][1], b"\1" + arrays[5][1][1:])
  if kind == "noise":
    return packed[:500] + bytes(500) + packed[1000:]
  if kind == "encrypted":  # Says the flag of its first array.
    flag = packed[central + 8] | 1
    return packed[: central + 8] + bytes([flag]) + packed[central + 9 :]
  if kind == "unknown compression":
    return packed[: central + 10] + bytes([99]) + packed[central + 11 :]
  if kind == "PyTorch":
    return _archive([("archive/data.pkl", pickle.dumps({"a": 1}))])
  if kind == "twice":
    return _archive([*arrays, ("t.npy", arrays[0][1])])
  if kind == "a header":
    return _archive([("a.npy", b"\x93NUMPY\x01\x00\x05\x00((((((((")])
  stream = io.BytesIO()
  shape = np.load(io.BytesIO(arrays[3][1])).shape
  np.save(stream, np.ones(shape, kind))
  arrays[3] = (arrays[3][0], stream.getvalue())
  return _archive(arrays)


@pytest.mark.parametrize(
  ("kind", "said"),
  [
    ("cut off", "is no whole .npz file"),
    ("one bit", "is no whole .npz file"),
    ("noise", "m.npz: "),  # In a header or in numbers, by its zlib.
    ("encrypted", "is no whole .npz file"),
    ("unknown compression", "is no whole .npz file"),
    ("a header", "is no whole .npz file"),
    ("twice", "m.npz: holds t twice"),
    ("PyTorch", "holds archive/data.pkl, which is no array"),
    ("int32", "holds int32, must hold floats"),
    ("bool", "holds bool, must hold floats"),
    ("complex64", "holds complex64, must hold floats"),
    ("S4", "holds |S4, must hold floats"),
  ],
)
def test_damaged_npz(place, tmp_path, kind, said):
  content = _damage(kind, (place / "bv.npz").read_bytes())
  (tmp_path / "m.npz").write_bytes(content)
  assert said in error_of(tmp_path / "m.npz")


@pytest.mark.parametrize(
  ("vocab_size", "good"), [(500, 0), (1_000, 1), (1_100, 1), (9_000, 0)]
)
def test_a_vocabulary_must_be_the_tokenizers(
  tmp_path, shared_data, vocab_size, good
):
  model = model_cases.model_config(text=dict(vocab_size=vocab_size))
  params = model_cases.random_params(SigLIP(model))
  spiece = shared_data / "tokenizers" / "sentencepiece_test_1k.model"
  config = ConfigDict(dict(model=model, data=DATA | {"tokenizer": str(spiece)}))
  export.to_huggingface(tmp_path / "hf", params, config)
  assert any(pathlib.Path(tmp_path / "hf").glob("*.model"))
  if good:
    saved.load(str(tmp_path / "hf"), sharding.make_mesh())
    return
  with pytest.raises(UserError) as error:
    saved.load(str(tmp_path / "hf"), sharding.make_mesh())
  expected = f"has 1,000 pieces, and the model embeds {vocab_size:,}"
  assert expected in str(error.value)


@pytest.mark.parametrize("how", ["empty", "half", "gone"])
@pytest.mark.parametrize("what", ["_METADATA", "manifest.ocdbt", "numbers"])
def test_a_damaged_checkpoint(model_folder, what, how):
  params = model_folder / "checkpoints" / "0" / "params"
  file = params / what
  if what == "numbers":
    files = (params / "ocdbt.process_0" / "d").iterdir()
    file = max(files, key=lambda file: file.stat().st_size)
  if (what, how) == ("_METADATA", "gone"):
    pytest.skip("not needed")
  content = file.read_bytes()
  file.unlink()
  if how != "gone":
    file.write_bytes(content[: len(content) // 2] if how == "half" else b"")
  said = error_of(model_folder)
  assert f"{model_folder}/checkpoints/0 cannot be read: it is damaged" in said


def test_a_checkpoint_of_another_model(model_folder):
  file = model_folder / "config.json"
  config = json.loads(file.read_text())
  config["model"]["text"]["vocab_size"] = 300
  file.write_text(json.dumps(config))
  assert "damaged, or of another model" in error_of(model_folder)


def test_a_checkpoint_with_nan(tmp_path):
  model = model_cases.model_config(embed_dim=32)
  params = jax.tree.map(np.asarray, model_cases.random_params(SigLIP(model)))
  bias = params["text"]["head"]["bias"] = params["text"]["head"]["bias"].copy()
  bias[3] = np.nan
  model_cases.save_model(
    tmp_path / "m",
    jax.device_put(params),
    model,
    DATA,
  )
  said = error_of(tmp_path / "m")
  assert "text/head/bias holds numbers that are not finite" in said


@pytest.mark.parametrize(
  ("content", "said"),
  [
    (b"", "not JSON"),
    (b"\xff", "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b"[]", "must be a JSON object"),
    (b"{}", "model.image must be a JSON object"),
    (b'{"model":{"image":1}}', "model.image must be a JSON object"),
    (b'{"model":{"image":{},"text":{}}}', "data must be a JSON object"),
  ],
)
def test_a_damaged_config(model_folder, content, said):
  (model_folder / "config.json").write_bytes(content)
  assert f"config.json: {said}" in error_of(model_folder)
