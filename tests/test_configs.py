"""Every config is whole, checks out, and follows overrides."""

import os
import pathlib
import subprocess
import sys

import pytest
import runs

from big_siglip import training_data
from big_siglip.command_line import load_config, parse_flags
from big_siglip.errors import UserError
from big_siglip.plan import dry_run
from big_siglip.run.workdir import as_json

_ROOT = runs.ROOT / "configs"
CONFIGS = sorted([*_ROOT.glob("*.py"), *_ROOT.glob("siglip2/*.py")])


def names(path):
  return str(path.relative_to(_ROOT).with_suffix(""))


@pytest.mark.parametrize("path", CONFIGS, ids=names)
def test_every_config_checks_out(path):
  load_config(str(path))  # Every field, no other, each of its type and range.


@pytest.mark.parametrize("path", CONFIGS, ids=names)
def test_warm_up_follows_the_length_of_training(path):
  config = load_config(str(path))
  steps = config.total_steps // 2
  shorter = load_config(
    str(path),
    [f"--config.total_steps={steps}", f"--config.seed={config.seed + 1}"],
  )
  assert shorter.total_steps == steps
  assert 0 < shorter.optimizer.warmup_steps <= steps
  assert shorter.seed == config.seed + 1


@pytest.mark.parametrize("path", CONFIGS, ids=names)
def test_an_evaluation_follows_the_training_data_and_not_the_reverse(path):
  config = load_config(str(path))
  for name in config.evals:
    overrides = [f"--config.evals.{name}.{f}=other" for f in ("path", "split")]
    changed = load_config(str(path), overrides)
    assert changed.data.to_dict() == config.data.to_dict()
    assert changed.evals[name].path == changed.evals[name].split == "other"
  flags = ["--config.data.path=photos", "--config.data.name=tar"]
  changed = load_config(str(path), flags)
  if path.stem in ("folder", "finetune", "lora"):
    assert changed.evals.photos.path == "photos"
    assert changed.evals.photos.data == "tar"


def test_recipes_for_own_photos_hold_images_out():
  for name in (
    *("folder", "finetune", "finetune_labels"),
    *("unlocked", "lit", "lit_precomputed"),
  ):
    path = str(runs.ROOT / "configs" / f"{name}.py")
    config = load_config(path, ["--config.data.path=photos"])
    (section,) = config.evals.values()
    assert training_data.trained_on(config, section) == "held out"


def test_labels_are_classified_by_the_sentence_that_they_are_trained_with():
  path = str(runs.ROOT / "configs" / "finetune_labels.py")
  config = load_config(path, ["--config.data.templates=('one of {}',)"])
  assert config.evals.labels.templates == ("one of {}",)


@pytest.mark.parametrize("name", ["b16", "l16", "so400m"])
def test_pretraining_counts_examples_whatever_the_batch(name):
  path = str(runs.ROOT / "configs" / f"{name}.py")
  whole = load_config(path)
  half = load_config(path, [f"--config.batch_size={whole.batch_size // 2}"])
  assert abs(half.total_steps - 2 * whole.total_steps) <= 1


def test_a_field_without_a_value_takes_one():
  config = load_config(runs.CONFIG, ["--config.data.path=photos"])
  assert config.data.path == "photos"


def test_the_short_form_of_overrides_equals_the_long_one():
  path = runs.CONFIG
  short = parse_flags(["main.py", f"--config={path}:seed=3,data.flip=True"])
  long = parse_flags(
    [
      "main.py",
      f"--config={path}",
      "--config.seed=3",
      "--config.data.flip=True",
    ]
  )
  assert as_json(short) == as_json(long)
  assert short.seed == 3 and short.data.flip


def test_unknown_fields_wrong_types_and_bad_values_are_listed_together():
  with pytest.raises(UserError) as error:
    load_config(
      runs.CONFIG,
      [
        "--config.optimiser.name=lion",
        "--config.log_evry=3",
        "--config.total_steps=many",
        "--config.model.image.image_size=33",
        "--config.model.text.num_heads=5",
        "--config.optimizer.warmup_steps=10_000",
      ],
    )
  lines = str(error.value).splitlines()
  assert lines[0] == "6 mistakes:"
  for line, said in zip(
    lines[1:],
    [
      "config.optimiser.name",
      "did you mean 'log_every'",
      "config.total_steps=many: wrong type",
      "config.optimizer.warmup_steps=10000",
      "config.model.text.num_heads=5: must divide the width, 128",
      "config.model.image.image_size=33: must be a multiple of the patch",
    ],
    strict=True,
  ):
    assert said in line


@pytest.mark.parametrize(
  "text,said",
  [
    ("def get_config(:\n  pass", "cannot be loaded"),
    ("def get_config():\n  return 3", "must return a ConfigDict"),
    ("import no_such_module", "cannot be loaded"),
  ],
)
def test_a_broken_file_is_named(tmp_path: pathlib.Path, text, said):
  path = tmp_path / "mine.py"
  path.write_text(text)
  with pytest.raises(UserError, match=said) as error:
    load_config(str(path))
  assert str(path) in str(error.value)
  assert len(str(error.value).splitlines()) == 1


def test_a_missing_and_a_surplus_field_of_a_file_are_named(tmp_path):
  text = (runs.ROOT / "configs" / "base.py").read_text()
  path = tmp_path / "mine.py"
  path.write_text(text.replace("c.wandb = False", "c.wand = False"))
  with pytest.raises(UserError) as error:
    load_config(str(path))
  assert "config.wandb: missing" in str(error.value)
  assert "config.wand: unknown" in str(error.value)


@pytest.mark.parametrize("folder", ["configs", "others"])
def test_a_config_finds_the_others_from_any_folder(
  tmp_path, monkeypatch, folder
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(runs.ROOT)])
  monkeypatch.delitem(sys.modules, "configs.digits", raising=False)
  path = tmp_path / "project" / folder / "mine.py"
  path.parent.mkdir(parents=True)
  path.write_text(
    "from configs import digits\n"
    "def get_config():\n"
    "  c = digits.get_config()\n"
    "  c.seed = 9\n"
    "  return c\n"
  )
  before = list(sys.path)
  assert load_config(str(path)).seed == 9
  assert sys.path == before


def test_dry_run_prints_parameters_sharding_and_steps(capsys):
  path = str(runs.ROOT / "configs" / "so400m.py")
  dry_run.run(load_config(path, ["--config.mesh.fsdp=4"]))
  output = capsys.readouterr().out
  lines = dict(
    line.rsplit(maxsplit=1)
    for line in output.splitlines()
    if len(line.split()) > 1 and "{" not in line
  )
  assert "weights: none" in output
  assert "data: not given (config.data.path=None: must be" in output
  # FACTS: So400m/14 224 with text 64 has 48 more positions than the released.
  assert lines["parameters"] == f"{877_360_306 + 48 * 1152:,}"
  assert lines["steps"] == f"{40_000_000_000 // 32_768:,}"


def test_dry_run_simulates_a_mesh_larger_than_the_machine():
  done = subprocess.run(
    [
      *(sys.executable, "main.py", f"--config={runs.CONFIG}", "--dry_run"),
      *("--config.mesh.fsdp=8", "--config.mesh.tensor=2"),
    ],
    cwd=runs.ROOT,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert "16 devices (data=1, fsdp=8, tensor=2)" in done.stdout
