"""The wheel in an environment of its own, in another folder, without extras."""

import csv
import os
import shutil
import subprocess
import sys
import types

import numpy as np
from PIL import Image
import pytest
import runs

import big_siglip
from big_siglip.commands import main

pytestmark = pytest.mark.slow

# Of the tree, what was made of it.
_MADE = shutil.ignore_patterns(
  *(".git", ".venv*", "runs", "build", "*.egg-info", "__pycache__")
)
_SMALL = [
  f"--config.{field}={value}"
  for field, value in {
    "batch_size": 4,
    "total_steps": 2,
    "data.num_threads": 1,
    "evals.photos.batch_size": 4,
    "evals.photos.split": "all",
    "data.split": "all",
  }.items()
]
_TINY = [
  f"--config.model.{tower}.{field}={value}"
  for tower, fields in {
    "image": dict(image_size=32, width=32, depth=1, mlp_dim=64, num_heads=4),
    "text": dict(width=32, depth=1, mlp_dim=64, num_heads=4, length=16),
  }.items()
  for field, value in fields.items()
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """An environment with the wheel alone, and a few photos, far from the tree.

  Its `run` calls the command, its `python` the interpreter.
  """
  folder = tmp_path_factory.mktemp("installed")
  tree = shutil.copytree(runs.ROOT, folder / "tree", ignore=_MADE)
  python = folder / "venv" / "bin" / "python"
  pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
  wheels = folder / "wheels"
  for command in (
    [sys.executable, "-m", "venv", folder / "venv"],
    [*pip, "wheel", "--no-deps", f"--wheel-dir={wheels}", tree],
  ):
    subprocess.run(command, check=True)
  (wheel,) = wheels.glob("*.whl")
  pins = tree / "constraints.txt"
  subprocess.run([*pip, "install", f"--constraint={pins}", wheel], check=True)
  shutil.rmtree(tree)
  work = folder / "work"
  (work / "photos").mkdir(parents=True)
  rng = np.random.default_rng(0)
  with (work / "photos" / "captions.csv").open("w") as file:
    rows = csv.writer(file)
    rows.writerow(["image", "caption"])
    for number in range(8):
      pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
      Image.fromarray(pixels).save(work / "photos" / f"{number}.png")
      rows.writerow([f"{number}.png", f"a photo of number {number}"])
  environment = {
    **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    "JAX_NUM_CPU_DEVICES": "1",
  }

  def start(*command):
    return subprocess.run(
      list(map(str, command)),
      cwd=work,
      env=environment,
      capture_output=True,
      text=True,
      timeout=300,
    )

  return types.SimpleNamespace(
    folder=work,
    run=lambda *words: start(python.with_name("big-siglip"), *words),
    python=lambda code: start(python, "-c", code),
  )


@pytest.fixture(scope="module")
def exported(place):
  """A small model, trained and exported there."""
  done = place.run(
    *("train", "--config=folder", "--config.data.path=photos"),
    *("--workdir=run", *_SMALL, *_TINY),
  )
  assert done.returncode == 0, done.stderr
  done = place.run("export", "--checkpoint=run", "--output=exported")
  assert done.returncode == 0, done.stderr
  assert (place.folder / "exported" / "model.safetensors").is_file()
  return "exported"


def test_it_speaks(place):
  done = place.run("--version")
  assert done.stdout == f"big-siglip {big_siglip.__version__}\n"
  done = place.run("--help")
  assert done.returncode == 0
  assert all(f"  {name} " in done.stdout for name in main.LINES)
  for name, line in main.LINES.items():
    done = place.run(name, "--help")
    assert (done.returncode, done.stderr) == (0, ""), name
    assert done.stdout.startswith(line)


def test_a_model_is_loaded_and_scores(place, exported):
  code = f"""
import big_siglip
model = big_siglip.load({exported!r})
print(model.probabilities(["photos/0.png"], ["a cat", "a dog"]).shape)
print(big_siglip.__file__)
"""
  done = place.python(code)
  assert done.returncode == 0, done.stderr
  shape, where = done.stdout.splitlines()
  assert shape == "(1, 2)"
  assert where.startswith(str(place.folder.parent / "venv"))
  done = place.run(
    "classify", f"--checkpoint={exported}", "--labels=a cat,a dog", "photos"
  )
  assert done.returncode == 0, done.stderr
  assert "7.png" in done.stdout


def test_it_is_fine_tuned_and_evaluated(place, exported):
  done = place.run("import", f"--weights={exported}", "--output=imported")
  assert done.returncode == 0, done.stderr
  done = place.run(
    *("train", "--config=finetune", "--config.init.path=imported"),
    *("--config.data.path=photos", "--workdir=tuned", *_SMALL),
  )
  assert done.returncode == 0, done.stderr
  assert "done: 2 steps" in done.stdout
  done = place.run("evaluate", "--checkpoint=tuned", "--json")
  assert done.returncode == 0, done.stderr
  assert "evals/photos/image_to_text/recall@1" in done.stdout


@pytest.mark.parametrize(
  ("words", "extra"),
  [
    ("embed --checkpoint=exported --images=photos --output=vectors", "parquet"),
    ("search --embeddings=vectors --query=a", "parquet"),
    ("serve --checkpoint=exported", "serve"),
    ("report run", "report"),
    ("inspect --config=folder --config.data.path=photos", "report"),
    ("evaluate --checkpoint=run --output=results", "report"),
    ("export --checkpoint=run --format=onnx --output=onnx", "onnx"),
    ("plan --config=so400m --topology=v5e:16x16", "tpu"),
    ("prepare wit --output=wit", "prepare"),
    ("rewrite_tfrecord --input=a --output=b", "tfds"),
    ("train --config=digits --workdir=digits", "demo"),
    ("train --config=scenes --workdir=scenes", "demo"),
    ("train --config=folder --config.data.name=tfds:coco --workdir=a", "tfds"),
    (
      "train --config=folder --config.data.name=parquet --workdir=a "
      "--config.data.path=a.parquet",
      "parquet",
    ),
    (
      "train --config=folder --config.data.path=gs://a/b --workdir=a",
      "gs",
    ),
    (
      "train --config=folder --config.data.path=s3://a/b --workdir=a",
      "s3",
    ),
    (
      "train --config=folder --config.data.path=http://a/b.tar "
      "--config.data.name=tar --config.data.split=all --workdir=a",
      "http",
    ),
    (
      "train --config=folder --config.data.path=photos "
      "--config.data.decoder=fast --workdir=a",
      "fast",
    ),
    (
      "train --config=folder --config.data.path=photos --config.wandb=True "
      "--workdir=a",
      "wandb",
    ),
  ],
)
def test_a_missing_extra_is_one_line(place, exported, words, extra):
  done = place.run(*words.split())
  assert done.returncode == 2, done.stderr
  (line,) = done.stderr.splitlines()
  assert f"pip install 'big_siglip[{extra}]'" in line
  assert not (place.folder / "a").exists(), "nothing was begun"
