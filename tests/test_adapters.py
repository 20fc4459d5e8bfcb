"""LoRA adapters as PEFT saves them, by its documented files."""

import json

import jax
from ml_collections import ConfigDict
import model_cases
import numpy as np
import programs
import pytest
import runs

from big_siglip import sharding
from big_siglip.errors import UserError
from big_siglip.models import SigLIP
from big_siglip.trained import saved
from big_siglip.weights import export, huggingface, open_weights
from big_siglip.weights.rules import write_params
from big_siglip.weights.tensors import save_safetensors

RANK, ALPHA = 2, 8
# As PEFT 0.21 writes it, with what was left as it is.
PLAIN = dict(
  alpha_pattern={},
  base_model_name_or_path=None,
  bias="none",
  fan_in_fan_out=False,
  inference_mode=True,
  init_lora_weights=True,
  layer_replication=None,
  loftq_config={},
  lora_alpha=ALPHA,
  lora_bias=False,
  lora_dropout=0.1,
  megatron_core="megatron.core",
  modules_to_save=None,
  peft_type="LORA",
  peft_version="0.21.2",
  qalora_group_size=16,
  r=RANK,
  rank_pattern={},
  target_modules=["q_proj", "fc1"],
  use_dora=False,
  use_rslora=False,
)
TARGETS = [
  "vision_model.encoder.layers.0.self_attn.q_proj",
  "vision_model.encoder.layers.1.mlp.fc1",
  "vision_model.head.mlp.fc1",
  "text_model.encoder.layers.0.self_attn.q_proj",
  "text_model.head",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """Returns a folder of transformers and its arrays."""
  config = model_cases.model_config(
    dict(depth=2), dict(vocab_size=259), embed_dim=32
  )
  params = jax.device_put(model_cases.random_params(SigLIP(config)))
  data = dict(
    tokenizer="bytes", lowercase=True, clean="none", pad_id=1, resize="bicubic"
  )
  folder = tmp_path_factory.mktemp("adapters") / "base"
  whole = ConfigDict(dict(model=config, data=data))
  export.to_huggingface(folder, params, whole)
  arrays = {
    key: np.asarray(array())
    for key, _, array in write_params(params, huggingface.rules(config))
  }
  return folder, arrays


def _save(file, arrays):
  file.parent.mkdir(parents=True, exist_ok=True)
  tensors = [
    (k, np.shape(a), lambda a=a: np.asarray(a)) for k, a in arrays.items()
  ]
  save_safetensors(file, tensors, {})


def _pairs(arrays, targets=TARGETS, name="lora_{}.weight"):
  """Returns (the arrays of an adapter, {name: what it adds to A and B})."""
  rng = np.random.default_rng(0)
  small, products = {}, {}
  for target in targets:
    outputs, inputs = arrays[f"{target}.weight"].shape
    a = rng.normal(size=(RANK, inputs)).astype(np.float32)
    b = rng.normal(size=(outputs, RANK)).astype(np.float32)
    small[f"base_model.model.{target}.{name.format('A')}"] = a
    small[f"base_model.model.{target}.{name.format('B')}"] = b
    products[f"{target}.weight"] = b @ a
  return small, products


def _adapter(folder, small, **changes):
  _save(folder / "adapter_model.safetensors", small)
  config = folder / "adapter_config.json"
  config.write_text(json.dumps({**PLAIN, **changes}))
  return folder


def _read(path, base=None):
  weights = open_weights(str(path), base)
  config = ConfigDict({"model": weights.model, "data": {}})
  return runs.flatten(saved.load_weights(weights, config, sharding.make_mesh()))


def _merged(base, tmp_path, share):
  """Reads the base's weights with the adapter added to them by hand."""
  folder, arrays = base
  _, products = _pairs(arrays)
  whole = {k: a + share * products.get(k, 0) for k, a in arrays.items()}
  _save(tmp_path / "merged" / "model.safetensors", whole)
  config = (folder / "config.json").read_text()
  (tmp_path / "merged" / "config.json").write_text(config)
  return _read(tmp_path / "merged")


@pytest.mark.parametrize(
  ("changes", "share"), [({}, 4.0), (dict(use_rslora=True), 8 / 2**0.5)]
)
def test_an_adapter_is_added_to_its_base(
  base, tmp_path, caplog, changes, share
):
  folder, arrays = base
  small, _ = _pairs(arrays)
  # Whoever merges in float32 rounds once in the product and once in the sum.
  wanted = _merged(base, tmp_path, np.float32(share))
  named = _adapter(
    tmp_path / "a", small, base_model_name_or_path=str(folder), **changes
  )
  runs.assert_same(_read(named), wanted)
  assert f"has the adapter of {named} added (W + {share:g} B A)" in caplog.text
  runs.assert_same(_read(named / "adapter_model.safetensors"), wanted)
  silent = _adapter(tmp_path / "b", small, **changes)
  runs.assert_same(_read(silent, str(folder)), wanted)
  beside = _adapter(
    folder / "sub", small, base_model_name_or_path="..", **changes
  )
  runs.assert_same(_read(beside), wanted)
  state = _pairs(arrays, name="lora_{}.default.weight")[0]
  runs.assert_same(
    _read(_adapter(tmp_path / "c", state, **changes), str(folder)), wanted
  )


def test_an_adapter_of_a_tower_alone(base, tmp_path):
  _, arrays = base
  small, products = _pairs(arrays)
  vision = {k: a for k, a in arrays.items() if k.startswith("vision_model.")}
  _save(tmp_path / "tower.safetensors", vision)
  config = (base[0] / "config.json").read_text()
  for start in ("", "model.vision_tower.", "model.vision_tower.vision_model."):
    own = {
      k.replace("vision_model.", start): a
      for k, a in small.items()
      if "vision_model" in k
    }
    language = {
      f"base_model.model.model.language_model.q_proj.lora_{x}.weight": a
      for x, a in (("A", np.zeros((RANK, 4))), ("B", np.zeros((4, RANK))))
    }
    settings = json.loads(config) | {"architectures": ["SiglipVisionModel"]}
    place = tmp_path / "tower"
    _save(place / "model.safetensors", vision)
    (place / "config.json").write_text(json.dumps(settings))
    classifier = {"base_model.model.classifier.weight": np.zeros((3, 32))}
    whole = {**own, **language, **classifier}
    path = _adapter(tmp_path / f"a{len(start)}", whole)
    got = _read(path, str(place))
    kernel = got["image/encoder/blocks/mlp/up/kernel"][1]
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    np.testing.assert_array_equal(
      kernel, (arrays[name] + np.float32(4) * products[name]).T
    )


def _one_line(path, base=None):
  with pytest.raises(UserError) as error:
    _read(path, base)
  (line,) = str(error.value).splitlines()
  return line


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (dict(use_dora=True), "use_dora=True: must be empty, as in plain LoRA"),
    (dict(peft_type="IA3"), "peft_type='IA3': must be LORA"),
    (dict(bias="all"), "bias='all': must be none"),
    (dict(rank_pattern={"q_proj": 4}), "rank_pattern={'q_proj': 4}: must be"),
    (dict(alpha_pattern={"q_proj": 4}), "alpha_pattern={'q_proj': 4}: must be"),
    (dict(fan_in_fan_out=True), "fan_in_fan_out=True: must be empty"),
    (
      dict(init_lora_weights="pissa"),
      "init_lora_weights='pissa': must be True",
    ),
    (dict(something_new=True), "something_new=True: must be empty"),
    (dict(r=0), "r=0: must be a number above 0"),
    (dict(r="4"), "r='4': must be a number above 0"),
    (dict(lora_alpha=None), "lora_alpha=None: must be a number above 0"),
    (dict(r=3), "must be lora_A of [3, inputs] or lora_B of [outputs, 3]"),
    ({}, "is an adapter (LoRA), and says of no weights"),
    (
      dict(base_model_name_or_path="nowhere/at/all"),
      "is an adapter (LoRA) of 'nowhere/at/all', which cannot be read",
    ),
  ],
)
def test_what_is_no_plain_lora_is_refused(base, tmp_path, changes, said):
  small, _ = _pairs(base[1])
  assert said in _one_line(_adapter(tmp_path / "a", small, **changes))


def test_an_adapter_of_other_weights_is_refused(base, tmp_path):
  folder, arrays = base
  small, _ = _pairs(arrays)
  more = {
    f"base_model.model.vision_model.more.lora_{x}.weight": np.zeros(
      (RANK, RANK)
    )
    for x in "AB"
  }
  path = _adapter(tmp_path / "a", {**small, **more})
  assert "adapts vision_model.more, which" in _one_line(path, str(folder))
  name = f"base_model.model.{TARGETS[0]}.lora_A.weight"
  path = _adapter(tmp_path / "b", {**small, name: np.zeros((RANK, 5))})
  assert "of shape [32, 5], and" in _one_line(path, str(folder))
  path = _adapter(tmp_path / "c", {k: a for k, a in small.items() if k != name})
  assert "has no lora_A or no lora_B" in _one_line(path, str(folder))
  (tmp_path / "a" / "adapter_config.json").unlink()
  assert "is an adapter without its adapter_config.json" in _one_line(
    tmp_path / "a", str(folder)
  )
  assert "is no adapter, which base=x would be for" in _one_line(folder, "x")
  saved_whole = {
    "base_model.model.vision_model.head.probe": np.zeros((1, 1, 32))
  }
  path = _adapter(tmp_path / "e", {**small, **saved_whole})
  assert "is a whole array (modules_to_save)" in _one_line(path, str(folder))
  unmerged = {
    f"base_model.model.{TARGETS[0]}.base_layer.weight": np.zeros((2, 2)),
    **small,
  }
  _save(tmp_path / "d" / "model.safetensors", unmerged)
  assert "of an adapter (LoRA) that is not added yet" in _one_line(
    tmp_path / "d"
  )


def test_the_import_takes_a_base(base, tmp_path):
  folder, arrays = base
  small, _ = _pairs(arrays)
  path = _adapter(tmp_path / "a", small)
  flags = (f"--weights={path}", f"--output={tmp_path}/model")
  assert "says of no weights" in programs.said_in_one_line(
    "tools/import_weights.py", *flags
  )
  status, _, said = programs.call(
    "tools/import_weights.py", *flags, f"--base={folder}"
  )
  assert status == 0, said
  assert "added (W + 4 B A)" in said
  _, params = saved.load(str(tmp_path / "model"), sharding.make_mesh())
  runs.assert_same(runs.flatten(params), _read(path, str(folder)))
