"""Weights as trainers leave them: wrapped, beside others, without a bias."""

import jax
from jax.experimental.array_serialization import serialization
from ml_collections import ConfigDict
import model_cases
import numpy as np
import pytest
import runs

from big_siglip import sharding
from big_siglip.errors import UserError
from big_siglip.models import SigLIP
from big_siglip.trained import saved
from big_siglip.weights import (
  big_vision,
  export,
  huggingface,
  open_clip,
  open_weights,
)
from big_siglip.weights.rules import write_params
from big_siglip.weights.tensors import save_safetensors

DATA = dict(
  tokenizer="bytes", lowercase=True, clean="none", pad_id=1, resize="bicubic"
)
BIAS = {"huggingface": "logit_bias", "open_clip": "logit_bias"}
BIAS["big_vision"] = "b"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """Returns (parameters, {format: {name: array}}, a folder of transformers)."""
  config = model_cases.model_config(
    dict(depth=2), dict(depth=2, vocab_size=259), embed_dim=32
  )
  params = jax.device_put(model_cases.random_params(SigLIP(config)))
  folder = tmp_path_factory.mktemp("names") / "hf"
  whole = ConfigDict(dict(model=config, data=DATA))
  export.to_huggingface(folder, params, whole)
  modules = dict(
    huggingface=huggingface, open_clip=open_clip, big_vision=big_vision
  )
  arrays = {
    name: {
      key: np.asarray(array())
      for key, _, array in write_params(params, module.rules(config))
    }
    for name, module in modules.items()
  }
  return params, arrays, folder


def write(file, arrays):
  """Writes arrays by name, in the format that the file's name says."""
  file.parent.mkdir(parents=True, exist_ok=True)
  if file.suffix == ".npz":
    np.savez(file, **arrays)
    return file
  tensors = [
    (key, np.shape(a), lambda a=a: np.asarray(a, np.float32))
    for key, a in arrays.items()
  ]
  save_safetensors(file, tensors, {})
  return file


def read(path):
  """Returns what is read, in a program that says what it did."""
  return saved.load(str(path), sharding.make_mesh(), tokenizer=False)[1]


def lines_of(path):
  with pytest.raises(UserError) as error:
    read(path)
  return [line.strip() for line in str(error.value).splitlines()]


def said_of_names(caplog):
  """Returns what was logged, but for the line about images."""
  lines = [record.getMessage() for record in caplog.records]
  return [line for line in lines if "what happens to images" not in line]


def prefixed(prefix, arrays):
  return {prefix + name: array for name, array in arrays.items()}


@pytest.mark.parametrize(
  ("prefix", "format"),
  [
    ("module.", "huggingface"),
    ("_orig_mod.", "huggingface"),
    ("model.", "huggingface"),
    ("base_model.model.", "huggingface"),
    ("module._orig_mod.", "open_clip"),
    ("model.module.", "huggingface"),
    ("_fsdp_wrapped_module.siglip.", "open_clip"),
    ("module.", "big_vision"),
  ],
)
def test_prefixes_are_taken_off_and_named(
  model, tmp_path, caplog, prefix, format
):
  params, arrays, _ = model
  path = write(tmp_path / "m.safetensors", prefixed(prefix, arrays[format]))
  runs.assert_same(runs.flatten(read(path)), runs.flatten(params))
  count = len(arrays[format])
  said = f"{path}: {prefix!r} is taken off {count} of {count} names"
  assert said_of_names(caplog) == [said]


def test_wrappers_within_a_model_and_a_scale_without_prefix(
  model, tmp_path, caplog
):
  params, arrays, _ = model
  within = {
    name.replace("vision_model.", "vision_model._orig_mod."): array
    for name, array in arrays["huggingface"].items()
  }
  runs.assert_same(
    runs.flatten(read(write(tmp_path / "m.safetensors", within))),
    runs.flatten(params),
  )
  assert "'_orig_mod.' is taken off 48 of 88 names" in caplog.text
  around = {
    name if name.startswith("logit_") else f"model.{name}": array
    for name, array in arrays["huggingface"].items()
  }
  runs.assert_same(
    runs.flatten(read(write(tmp_path / "n.safetensors", around))),
    runs.flatten(params),
  )


def test_of_missing_and_surplus_names_some_of_each_are_shown(model, tmp_path):
  _, arrays, _ = model
  plain = arrays["huggingface"]
  half = {
    name if "vision" in name else f"clip.{name}": a for name, a in plain.items()
  }
  path = tmp_path / "hf"
  write(path / "model.safetensors", half)
  (path / "config.json").write_text((model[2] / "config.json").read_text())
  lines = lines_of(path)
  assert len(lines) == 21, "a line before the twenty"
  assert lines[1] == (
    f"{path}: 40 surplus names are missing ones with 'clip.' before them"
  )
  shown = {
    kind: [x for x in lines if x.endswith(f": {kind}")]
    for kind in ("missing", "surplus")
  }
  assert min(map(len, shown.values())) >= 8
  assert f"{path}: and {40 - len(shown['surplus'])} more surplus" in lines
  # What differs is said after what was taken off.
  path = write(
    tmp_path / "m.safetensors",
    prefixed("module.", {**plain, "more": np.zeros(2)}),
  )
  lines = lines_of(path)
  assert lines[1:] == [
    f"{path}: 'module.' is taken off 89 of 89 names",
    f"{path}: more: surplus",
  ]


def test_several_models_in_a_file_are_named(model, tmp_path):
  _, arrays, _ = model
  plain = arrays["huggingface"]
  for first, second in (("", "ema."), ("model.", "ema_model.")):
    both = {**prefixed(first, plain), **prefixed(second, plain)}
    (line,) = lines_of(write(tmp_path / "m.safetensors", both))
    a, b = sorted((first, second))
    assert line.endswith(
      f"holds 2 models, whose names begin with {a!r}, {b!r}; must hold one"
    )
  twice = {**plain, "module.logit_scale": plain["logit_scale"]}
  (line,) = lines_of(write(tmp_path / "m.safetensors", twice))
  assert "logit_scale and module.logit_scale have one name" in line


def test_names_of_no_siglip_are_shown(tmp_path):
  path = write(tmp_path / "m.safetensors", {"stem.weight": np.zeros((2, 2))})
  (line,) = lines_of(path)
  assert "holds no SigLIP model: no array is called ..." in line
  assert line.endswith("the first are stem.weight")


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_places_that_count_from_zero_are_dropped(model, tmp_path, prefix):
  params, arrays, _ = model
  ids = {
    f"{tower}_model.embeddings.position_ids": np.arange(6)[None]
    for tower in ("vision", "text")
  }
  path = write(
    tmp_path / "m.safetensors",
    prefixed(prefix, {**arrays["huggingface"], **ids}),
  )
  runs.assert_same(runs.flatten(read(path)), runs.flatten(params))


@pytest.mark.parametrize("format", sorted(BIAS))
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_scalars_have_any_shape_of_one_number(model, tmp_path, format, shape):
  params, arrays, _ = model
  scalars = {
    name: array.reshape(shape) if array.size == 1 else array
    for name, array in arrays[format].items()
  }
  ending = "npz" if format == "big_vision" else "safetensors"
  path = write(tmp_path / f"m.{ending}", scalars)
  runs.assert_same(runs.flatten(read(path)), runs.flatten(params))


@pytest.mark.parametrize("format", sorted(BIAS))
def test_a_softmax_models_bias_is_zero(model, tmp_path, caplog, format):
  params, arrays, _ = model
  without = {k: v for k, v in arrays[format].items() if k != BIAS[format]}
  ending = "npz" if format == "big_vision" else "safetensors"
  path = write(tmp_path / f"m.{ending}", without)
  again = read(path)
  assert float(again["logit_bias"]) == 0
  assert said_of_names(caplog) == [
    f"{path}: has no {BIAS[format]}: it is 0, as for a model trained with "
    "softmax"
  ]
  wanted = {**params, "logit_bias": again["logit_bias"]}
  runs.assert_same(runs.flatten(again), runs.flatten(wanted))
  scale = "t" if format == "big_vision" else "logit_scale"
  del without[scale]
  lines = lines_of(write(path, without))
  assert [line.rpartition(": ")[0].split(": ")[-1] for line in lines[1:]] == [
    scale,
    BIAS[format],
  ]


@pytest.mark.parametrize("format", sorted(BIAS))
def test_a_scale_that_is_no_logarithm(model, tmp_path, caplog, format):
  _, arrays, folder = model
  name = "t" if format == "big_vision" else "logit_scale"
  ending = "npz" if format == "big_vision" else "safetensors"
  for value in (112.3, 88.8):
    own = {**arrays[format], name: np.full((1,), value, np.float32)}
    path = write(tmp_path / f"m.{ending}", own)
    (line,) = lines_of(path)
    assert line.startswith(
      f"{path}: {name}={value}: must be the logarithm of the scale, at most 88"
    )
  own[name] = np.full((1,), 10.0, np.float32)
  read(write(path, own))
  assert f"{name}=10: cosines are multiplied with its exponential, 22026" in (
    caplog.text
  )


def test_a_trainers_state_beside_the_parameters(model, tmp_path, caplog):
  params, arrays, _ = model
  plain = arrays["big_vision"]
  state = {
    **prefixed("params/", plain),
    **prefixed("opt/0/1/mu/", plain),
    **prefixed("opt/0/1/nu/", plain),
    "opt/0/count": np.zeros(()),
    "chrono/note": np.array({}, object),
  }
  path = write(tmp_path / "m.npz", state)
  runs.assert_same(runs.flatten(read(path)), runs.flatten(params))
  count = 2 * len(plain) + 1
  said = f"{path}: {count} other arrays are passed over: opt/ {count}"
  assert said_of_names(caplog) == [said]
  older = {
    **prefixed("opt/target/", plain),
    **{f"opt/state/{name}/grad_ema": array for name, array in plain.items()},
  }
  path = write(tmp_path / "older.npz", older)
  runs.assert_same(runs.flatten(read(path)), runs.flatten(params))
  mixed = {**plain, "opt/0/count": np.zeros(())}
  path = write(tmp_path / "mixed.npz", mixed)
  runs.assert_same(runs.flatten(read(path)), runs.flatten(params))


def _write_zarr(folder, arrays):
  """Writes arrays as JAX does, and with it big_vision's trainers."""
  specs = [
    serialization.get_tensorstore_spec(str(folder / name.replace("/", "~")))
    for name in arrays
  ]
  manager = serialization.GlobalAsyncCheckpointManager()
  values = [jax.numpy.asarray(array) for array in arrays.values()]
  manager.serialize(values, specs, on_commit_callback=lambda: None)
  manager.wait_until_finished()


def test_a_checkpoint_of_big_visions_trainers(model, tmp_path, caplog):
  params, arrays, _ = model
  plain = arrays["big_vision"]
  state = {
    **prefixed("params/", plain),
    **prefixed("opt/0/mu/", plain),
    "chrono/step": np.int32(3),
  }
  folder = tmp_path / "run" / "checkpoint.bv-000000100"
  _write_zarr(folder, state)
  (tmp_path / "run" / "checkpoint.bv-LAST").write_text("000000100")
  for path in (folder, tmp_path / "run", tmp_path / "run" / "checkpoint.bv"):
    runs.assert_same(runs.flatten(read(path)), runs.flatten(params))
  count = len(plain) + 1
  assert (
    f"{folder}: {count} other arrays are passed over: opt/ {count - 1}, "
    "chrono/ 1"
  ) in caplog.text
  kernel = folder / "params~img~embedding~kernel"
  (chunk,) = (file for file in kernel.iterdir() if file.name != ".zarray")
  data = chunk.read_bytes()
  chunk.write_bytes(data[:20])
  (line,) = lines_of(folder)
  assert f"{folder}: params/img/embedding/kernel is damaged" in line
  chunk.unlink()
  (line,) = lines_of(folder)
  assert "has 0 of the 1 files of an array of shape [8, 8, 3, 32]" in line
  (kernel / ".zarray").write_text("{}")
  (line,) = lines_of(folder)
  assert "is no header of an array" in line


def test_a_file_of_a_repository(model, tmp_path, monkeypatch):
  from huggingface_hub import constants

  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  params, arrays, folder = model
  repository = tmp_path / "models--someone--siglip"
  snapshot = repository / "snapshots" / "0123abcd"
  for name in ("a", "b"):
    write(snapshot / f"{name}.safetensors", arrays["huggingface"])
  write(snapshot / "old" / "m.npz", arrays["big_vision"])
  (repository / "refs").mkdir()
  (repository / "refs" / "main").write_text("0123abcd")
  for path in (
    "someone/siglip/a.safetensors",
    "hf-hub:someone/siglip/b.safetensors",
    "https://huggingface.co/someone/siglip/blob/main/old/m.npz",
  ):
    runs.assert_same(runs.flatten(read(path)), runs.flatten(params))
    assert not saved.is_run(path)
  (line,) = lines_of("someone/siglip")
  assert "holds 2 models of SigLIP (a.safetensors, b.safetensors)" in line
  (line,) = lines_of("someone/siglip/c.safetensors")
  assert "someone/siglip has no c.safetensors; it has a.safe" in line
  (line,) = lines_of("someone/else/c.safetensors")
  assert "neither a path nor a repository that can be fetched" in line
  (line,) = lines_of("some/where/deep/in/a.folder")
  assert line == "some/where/deep/in/a.folder: no such file or folder"


def test_files_of_a_folder_are_chosen_or_asked_for(model, tmp_path, caplog):
  params, arrays, _ = model
  plain, other = arrays["huggingface"], arrays["open_clip"]

  def same(path):
    runs.assert_same(runs.flatten(read(path)), runs.flatten(params))

  write(tmp_path / "both" / "model.safetensors", plain)
  write(tmp_path / "both" / "open_clip_model.safetensors", other)
  write(tmp_path / "both" / "model.fp16.safetensors", plain)
  assert open_weights(str(tmp_path / "both")).format == "huggingface"
  same(tmp_path / "both")
  assert (
    f"{tmp_path}/both: model.safetensors is read, and not "
    "model.fp16.safetensors, open_clip_model.safetensors"
  ) in caplog.text
  named = open_weights(str(tmp_path / "both" / "open_clip_model.safetensors"))
  assert named.format == "open_clip"
  for name in ("a", "b"):
    write(tmp_path / "ab" / f"{name}.safetensors", plain)
  (line,) = lines_of(tmp_path / "ab")
  assert line == (
    f"{tmp_path}/ab: holds 2 models of SigLIP (a.safetensors, b.safetensors); "
    f"name one, such as {tmp_path}/ab/a.safetensors"
  )
  write(tmp_path / "ab" / "b.safetensors", {"exp_avg": np.zeros(2)})
  same(tmp_path / "ab")
  write(tmp_path / "ab" / "a.safetensors", {"exp_avg": np.zeros(2)})
  (line,) = lines_of(tmp_path / "ab")
  assert "holds 2 files, none of a SigLIP model (a.saf" in line
  (tmp_path / "hub" / "pytorch_model.bin").parent.mkdir()
  (tmp_path / "hub" / "pytorch_model.bin").write_bytes(b"\x80pickled")
  write(tmp_path / "hub" / "model.safetensors", plain)
  same(tmp_path / "hub")


def test_parts_without_an_index_are_one_model(model, tmp_path, caplog):
  params, arrays, _ = model
  names = list(arrays["huggingface"])
  parts = [tmp_path / f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
  for number, part in enumerate(parts):
    own = {name: arrays["huggingface"][name] for name in names[number::3]}
    write(part, own)
  for path in (tmp_path, parts[1]):
    runs.assert_same(runs.flatten(read(path)), runs.flatten(params))
  assert f"{parts[1]}: is read with the 2 other parts of model" in caplog.text
  parts[2].unlink()
  for path in (tmp_path, parts[1]):
    (line,) = lines_of(path)
    assert line.endswith(
      f"{parts[2].name} is missing, one of 3 parts of a model"
    )


def test_a_folder_of_checkpoints_names_the_one_below(model, tmp_path):
  write(
    tmp_path / "checkpoint-500" / "model.safetensors", model[1]["huggingface"]
  )
  (line,) = lines_of(tmp_path)
  assert line.endswith(
    "holds no run and no safetensors file, but its folder does: name "
    f"{tmp_path}/checkpoint-500"
  )
