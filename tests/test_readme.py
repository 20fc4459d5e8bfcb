"""The README's three paths, walked as a user does who has installed a wheel.

The commands are those of the README's own code blocks. They run in a fresh
environment, in a folder that is no checkout, without the network but for pip.
A small model that was exported for transformers lies in the folder
google/siglip-base-patch16-224, so that the published one's name finds it: a
folder goes before the Hub. `_SMALLER` says what else is made less.
"""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import numpy as np
from PIL import Image
import pytest
import runs

ROOT = runs.ROOT
README = (ROOT / "README.md").read_text()
MODEL = "google/siglip-base-patch16-224"
COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}
_FEW_STEPS = "--config.total_steps=3 --config.batch_size=8"
# What takes a pod or a day, and what stands for it here.
_SMALLER = {
  "total_steps=1_000": "total_steps=3, batch_size=8",
  "--config=so400m --topology=v5e:16x16": "--config=folder --topology=cpu:2",
  "--config=so400m --config.distributed=True": (
    f"--config=folder --config.distributed=True {_FEW_STEPS}"
  ),
}

pytestmark = pytest.mark.slow


def blocks(title):
  """Returns the code of a section of the README, as (is Python, text)."""
  section = re.split(r"^## ", README, flags=re.M)
  text = next(part for part in section if part.startswith(f"{title}\n"))
  found = []
  pattern = r"^```python\n((?s:.*?))^```|((?:^    .*\n)+)"
  for match in re.finditer(pattern, text, re.M):
    code = match[1] or re.sub(r"^    ", "", match[2], flags=re.M)
    found.append((match[1] is not None, code))
  return found


def commands(text):
  """Returns the lines of a shell block, those that go on put together."""
  joined = re.sub(r"\\\n\s*", "", text)
  lines = (re.sub(r"\s+# .*", "", line) for line in joined.splitlines())
  return [line for line in lines if line]


class User:
  """Someone in a folder of their own, with an environment of their own."""

  def __init__(self, folder):
    self.folder = folder / "work"
    self.folder.mkdir()
    binaries = folder / "venv" / "bin"
    own = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    self.env = {
      **own,
      "PATH": f"{binaries}:{os.environ['PATH']}",
      "XDG_CACHE_HOME": str(folder / "cache"),
      "BIG_SIGLIP_DATA": str(folder / "data"),
      "HF_HUB_OFFLINE": "1",
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": "1",
    }
    self.times = []

  def run(self, command, **options):
    """Runs a line of a shell; returns what it says."""
    options = {"cwd": self.folder, "env": self.env, **options}
    begin = time.perf_counter()
    done = subprocess.run(
      command,
      shell=True,
      executable="/bin/bash",
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      timeout=1_800,
      **options,
    )
    self.times.append((time.perf_counter() - begin, command))
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    assert "Traceback" not in done.stdout, f"{command}\n{done.stdout}"
    return done.stdout

  def start(self, command):
    """Starts a line of a shell, which may be ended with all it started."""
    return subprocess.Popen(
      command,
      shell=True,
      executable="/bin/bash",
      cwd=self.folder,
      env=self.env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      start_new_session=True,
    )


@pytest.fixture(scope="module")
def user(tmp_path_factory):
  """Someone who has installed the wheel as the README says."""
  folder = tmp_path_factory.mktemp("readme")
  user = User(folder)
  install = commands(blocks("Install")[0][1])
  (wheel,) = (line for line in install if line.startswith("pip wheel"))
  (extras,) = re.findall(
    r"^pip install '\.(\[\w+\])'$", "\n".join(install), re.M
  )
  # What git ignores stays where it is, and pip builds beside what it reads.
  source = folder / "source"
  source.mkdir()
  for name in ("big_siglip", "configs"):
    shutil.copytree(
      ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
    )
  for name in (
    "setup.cfg",
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
  ):
    shutil.copy(ROOT / name, source)
  user.run(f"{sys.executable} -m venv {folder / 'venv'}")
  user.run(wheel, cwd=source)
  (file,) = (source / "dist").glob("*.whl")
  user.run(f"pip install --quiet '{file}{extras}'")
  shutil.rmtree(source)
  _bring_files(user)
  yield user
  for seconds, command in user.times:
    print(f"{seconds:7.1f} s  {command[:110]}")


def _bring_files(user):
  """Makes what the README's user has: photos, pairs, a tokenizer, a model."""
  photos = user.folder / "PHOTOS"
  photos.mkdir()
  random = np.random.default_rng(0)
  lines = ["image,caption"]
  for number in range(60):
    name = list(COLOURS)[number % 3]
    pixels = random.integers(0, 60, (40, 50, 3)) + COLOURS[name]
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    image.save(photos / f"{number}.jpg")
    lines.append(f"{number}.jpg,a photo of something {name}")
  (photos / "captions.csv").write_text("\n".join(lines))
  shutil.copytree(photos, user.folder / "PAIRS")
  for number, name in enumerate(("cat", "dog")):
    shutil.copy(photos / f"{number}.jpg", user.folder / f"{name}.jpg")
  user.run(
    "mkdir c4_en && big-siglip tokenizer --path=PHOTOS --split=all "
    "--vocab_size=297 --output=c4_en/sentencepiece.model"
  )
  user.run(
    "big-siglip train --config=folder --config.data.path=PHOTOS "
    f"--workdir=runs/small {_FEW_STEPS}"
  )
  user.run(f"big-siglip export --checkpoint=runs/small --output={MODEL}")


def _smaller(text):
  for large, small in _SMALLER.items():
    text = text.replace(large, small)
  train = text.startswith("big-siglip train") and "--dry_run" not in text
  return f"{text} {_FEW_STEPS}" if train else text


def _walk(user, title):
  """Runs all blocks of a section; returns what each command said."""
  said = {}
  for number, (is_python, code) in enumerate(blocks(title)):
    if is_python:
      (user.folder / "program.py").write_text(_smaller(code))
      said[f"python {number}"] = user.run("python program.py")
      continue
    for command in map(_smaller, commands(code)):
      words = shlex.split(command)
      if words[:2] == ["big-siglip", "serve"]:
        _open_page(user, command)
      elif words[0].startswith("tools/launch/"):
        command = command.replace(" -- ", " --dry_run -- ")
        said[words[0]] = user.run(command, cwd=ROOT)
      elif "JAX_NUM_PROCESSES=2" in command:
        said["several"] = _run_two(user, command)
      else:
        said[" ".join(words[:2])] = user.run(command)
  return said


def _open_page(user, command):
  """Asks the page whether it is there, and ends it."""
  process = user.start(f"exec {command} --port=0")
  try:
    said = ""
    for line in process.stdout:
      said += line
      if found := re.search(r"http://\S+:\d+", line):
        break
    else:
      raise AssertionError(said)
    with urllib.request.urlopen(f"{found[0]}/healthz", timeout=600) as answer:
      assert answer.status == 200
  finally:
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=600)


def _run_two(user, command):
  """Runs a command as process 0 and 1 of 2; returns what 0 says."""
  assert "JAX_PROCESS_ID=0" in command
  shared = command.replace("runs/so400m", "runs/two")
  shared = shared.replace("host0:1234", f"localhost:{runs.free_port()}")
  both = [
    user.start(shared.replace("PROCESS_ID=0", f"PROCESS_ID={number}"))
    for number in (0, 1)
  ]
  said = [process.communicate(timeout=900)[0] for process in both]
  for process, text in zip(both, said, strict=True):
    assert process.returncode == 0, text
  return said[0]


def test_use_a_published_model(user):
  said = _walk(user, "Use a published model")
  assert re.fullmatch(r"\[\[.*\]\n \[.*\]\]\n", said["python 0"])
  assert "a cat" in said["big-siglip classify"]
  assert "60 images embedded, 0 skipped" in said["big-siglip embed"]
  assert len(re.findall(r"\d\.jpg$", said["big-siglip search"], re.M)) == 10


def test_fine_tune_on_a_folder(user):
  shutil.rmtree(user.folder / "models", ignore_errors=True)
  said = _walk(user, "Fine-tune on a folder")
  assert "done: 3 steps" in said["big-siglip train"]
  assert "image_to_text/recall@1" in said["big-siglip evaluate"]
  made = ("data.png", "report.html", "results/photos.csv")
  for name in (*made, "runs/finetuned/finetuning.json", "exported/config.json"):
    assert (user.folder / name).stat().st_size > 0, name
  # What was exported stands where the published model did.
  again = "big-siglip classify --checkpoint=exported --labels='a,b' cat.jpg"
  assert "cat.jpg" in user.run(again)


def test_pretrain_on_a_pod(user):
  said = _walk(user, "Pretrain on a pod")
  assert re.search(r"parameters +877,", said["big-siglip train"])
  assert re.search(r"fits +yes", said["big-siglip plan"])
  launcher = "tools/launch/tpu_vm.sh"
  assert "v5litepod-256" in said[launcher]
  assert "done: 3 steps" in said["several"]
  assert pathlib.Path(user.folder / "runs/two/checkpoints/3").is_dir()
