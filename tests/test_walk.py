"""Import, evaluate, fine-tune, export: as a user walks it, tool by tool."""

import json
import os
import subprocess
import sys

import numpy as np
from peers import torch, transformers
from PIL import Image
import programs
import pytest
import runs
import test_models_reference
from test_models_reference import CASES, LENGTH, make_config, make_reference

from big_siglip.data.text import make_tokenizer
from big_siglip.weights import export_tokenizer

VOCAB = 600

pytestmark = pytest.mark.torch


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES))
def test_from_transformers_to_transformers(
  tmp_path, shared_data, name, monkeypatch
):
  from ml_collections import ConfigDict

  photos = shared_data / "flickr1k"
  foreign, spiece = tmp_path / "foreign", tmp_path / "own.model"
  status, output, message = programs.start(
    "tools/train_tokenizer.py",
    f"--path={photos}",
    "--vocab_size=600",
    f"--output={spiece}",
  )
  assert status == 0, message
  monkeypatch.setattr(test_models_reference, "VOCAB", VOCAB)
  config = make_config(name)
  theirs = make_reference(config)
  theirs.save_pretrained(foreign)
  size = config.image.image_size
  transformers.SiglipImageProcessor(
    size={"height": size, "width": size}, resample=3
  ).save_pretrained(foreign)
  rules = dict(tokenizer=str(spiece), lowercase=True, pad_id=1, clean="none")
  export_tokenizer.make(ConfigDict(rules), LENGTH).save(foreign)

  status, output, message = programs.start(
    "tools/import_weights.py",
    f"--weights={foreign}",
    f"--output={tmp_path / 'model'}",
  )
  assert status == 0, message
  # The model and its preprocessing are those of the weights.
  evaluation = [
    "--config.evals.photos.split=test",
    "--config.evals.photos.batch_size=80",
    f"--config.data.path={photos}",
  ]
  status, output, message = programs.start(
    "tools/evaluate.py",
    f"--checkpoint={tmp_path / 'model'}",
    f"--config={runs.ROOT / 'configs' / 'finetune.py'}",
    "--json",
    *evaluation,
  )
  assert status == 0, message
  before = json.loads(output)["evals/photos/image_to_text/recall@10"]
  done = subprocess.run(
    [
      *(sys.executable, "main.py", "--config=configs/finetune.py"),
      f"--workdir={tmp_path / 'run'}",
      f"--config.init.path={tmp_path / 'model'}",
      "--config.data.split=test",
      "--config.total_steps=3",
      "--config.batch_size=16",
      "--config.model.dtype=float32",
      *evaluation,
    ],
    cwd=runs.ROOT,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert f"vocab_size={config.text.vocab_size}, " in done.stdout
  assert "the weights of" not in done.stderr, "the preprocessing is its own"
  report = json.loads((tmp_path / "run" / "finetuning.json").read_text())
  first = report["evaluations"]["evals/photos/image_to_text/recall@10"]
  assert first["before"] == pytest.approx(before, abs=0.02)
  assert min(report["relative_change"].values()) > 0
  status, output, message = programs.start(
    "tools/export_weights.py",
    f"--checkpoint={tmp_path / 'run'}",
    f"--output={tmp_path / 'out'}",
  )
  assert status == 0, message
  _check(tmp_path / "run", tmp_path / "out", photos)


def _check(run, exported, photos):
  """Compares logits, with its own processor, to ours of the run."""
  import big_siglip

  model = transformers.AutoModel.from_pretrained(exported).eval()
  processor = transformers.AutoProcessor.from_pretrained(exported)
  ours = big_siglip.load(str(run))
  files = sorted(photos.rglob("*.jpg"))[:4]
  texts = ["a dog runs on the beach", "two children"]
  inputs = processor(
    text=texts,
    images=[Image.open(file) for file in files],
    padding="max_length",
    max_length=ours.preprocess.value.text_length,
    truncation=True,
    return_tensors="pt",
  )
  tokens = make_tokenizer(str(run / "tokenizer.model"))(
    texts, ours.preprocess.value.text_length
  )
  np.testing.assert_array_equal(inputs["input_ids"], tokens)
  pixels = np.stack([ours.prepare_image(file) for file in files])
  seen = (inputs["pixel_values"].numpy().transpose(0, 2, 3, 1) + 1) * 127.5
  assert np.abs(pixels - seen).max() <= 1.001
  # Of the same pixels to the last bit.
  inputs["pixel_values"] = torch.tensor(
    pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
  )
  with torch.no_grad():
    expected = model(**inputs).logits_per_image
  np.testing.assert_allclose(ours.logits(files, texts), expected, atol=1e-4)
