"""tools/classify.py, on a model and images that this test makes."""

import json
import os

import jax
import model_cases
import numpy as np
from PIL import Image
import programs
import pytest

import big_siglip
from big_siglip.models import SigLIP

LABELS = ["a cat", "a dog", "a boat"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with a model, and photos of which one is none."""
  folder = tmp_path_factory.mktemp("classify")
  config = model_cases.model_config({}, dict(vocab_size=259))
  params = jax.device_put(model_cases.random_params(SigLIP(config)))
  data = {"tokenizer": "bytes", "lowercase": True, "clean": "none", "pad_id": 1}
  model_cases.save_model(
    folder / "model", params, config, {**data, "resize": "bilinear"}
  )
  (folder / "photos").mkdir()
  rng = np.random.default_rng(0)
  for name in ("one.png", "two.jpg"):
    pixels = rng.integers(0, 256, (24, 40, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photos" / name)
  (folder / "photos" / "broken.jpg").write_text("no image")
  return folder


def test_scores_are_those_of_the_model_and_a_bad_image_is_named(place):
  status, output, message = programs.start(
    "tools/classify.py",
    f"--checkpoint={place}/model",
    f"--labels={','.join(LABELS)}",
    "--template=a photo of {}",
    "--json",
    f"{place}/photos",
  )
  assert status == 0, message
  lines = [json.loads(line) for line in output.splitlines()]
  files = [place / "photos" / name for name in ("one.png", "two.jpg")]
  assert [line["image"] for line in lines] == list(map(str, files))
  assert "skipped: " in message and "broken.jpg" in message
  assert "1 of 3 images skipped" in message
  model = big_siglip.load(str(place / "model"))
  texts = [f"a photo of {label}" for label in LABELS]
  logits = model.logits(files, texts)
  for line, row in zip(lines, logits, strict=True):
    got = [line["scores"][label] for label in LABELS]
    np.testing.assert_allclose(
      [x["probability"] for x in got], 1 / (1 + np.exp(-row)), rtol=1e-3
    )
    softmax = np.exp(row - row.max())
    np.testing.assert_allclose(
      [x["softmax"] for x in got], softmax / softmax.sum(), rtol=1e-3
    )


def test_a_table_for_people(place):
  (place / "labels.txt").write_text("\n".join(LABELS))
  status, output, _ = programs.call(
    "tools/classify.py",
    f"--checkpoint={place}/model",
    f"--labels={place}/labels.txt",
    "--top=2",
    f"{place}/photos/one.png",
  )
  assert status == 0
  lines = output.splitlines()
  assert lines[0].endswith("one.png")
  assert lines[1].split() == ["sigmoid", "softmax"]
  assert len(lines) == 4


def test_images_that_cannot_be_read_are_named_and_100_000_labels_taken(
  place, tmp_path
):
  (tmp_path / "labels.txt").write_text(
    "\n".join(f"label {i}" for i in range(100_000))
  )
  (tmp_path / "cut.png").write_bytes(
    (place / "photos" / "one.png").read_bytes()[:200]
  )
  (tmp_path / "folder.png").mkdir()
  os.mkfifo(tmp_path / "pipe.png")  # Opened, it would wait for ever.
  name = os.fsdecode(b"\xff.png")  # No Unicode.
  (tmp_path / name).write_bytes((place / "photos" / "one.png").read_bytes())
  flags = [f"--checkpoint={place}/model", f"--labels={tmp_path}/labels.txt"]
  status, output, message = programs.call(
    "tools/classify.py", *flags, "--top=3", str(tmp_path)
  )
  assert status == 0, message
  assert len(output.splitlines()) == 5
  assert "cut.png: " in message and "1 of 2 images skipped" in message
  status, output, message = programs.call(
    "tools/classify.py", *flags[:1], "--labels=a,b", f"{tmp_path}/cut.png"
  )
  assert (status, output) == (1, "")
  assert message.splitlines()[-1] == "1 of 1 images skipped"


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--labels=a,b", "x.png"], "--checkpoint=MODEL must be given"),
    (["--checkpoint=m", "x.png"], "--labels=A,B or --labels=FILE"),
    (["--checkpoint=m", "--labels=a,,b", "x.png"], "holds an empty label"),
    (["--checkpoint=m", "--labels=a,b,a", "x.png"], "'a' stands there twice"),
    (["--checkpoint=m", "--labels=nowhere.txt", "x.png"], "no such file"),
    (["--checkpoint=m", "--labels=a", "--top=0"], "must be at least 1"),
    (["--checkpoint=m", "--labels=a", "--top=x"], "invalid literal for int"),
    (["--chekpoint=m"], "'chekpoint'. Did you mean: checkpoint ?"),
    (["--checkpoint=m", "--labels=docs/page-labels.png"], "must be UTF-8"),
    (["--checkpoint=m", "--labels=a"], "name at least one image"),
    (["--checkpoint=m", "--labels=a", "x.png"], "x.png: no such file"),
    (["--checkpoint=m", "--labels=a", "--template=of"], "must hold {}"),
    (["--checkpoint=nowhere", "--labels=a", "setup.py"], "no such file"),
  ],
)
def test_a_mistake_is_one_line(flags, said):
  assert said in programs.said_in_one_line("tools/classify.py", *flags)
