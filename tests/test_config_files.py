"""Configs are found by name or path from any folder, and so is what they name.

test_installed.py does the same with a wheel.
"""

import pathlib
import shutil
import sys

import pytest
import runs

from big_siglip import shipped
from big_siglip.command_line import load_config, load_evals, parse_flags
from big_siglip.data import class_files
from big_siglip.data.text import make_tokenizer
from big_siglip.errors import UserError
from big_siglip.evaluators.prompts import read_templates

OURS = runs.ROOT / "configs"
OWN = """
from configs import base

def get_config():
  c = base.get_config()
  c.seed = 7
  return c
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.parametrize("name", ["digits", "digits.py", "configs/digits.py"])
def test_a_name_finds_what_comes_with_the_package(name, elsewhere, capsys):
  flags = ["--config.total_steps=3"]
  by_path = load_config(str(OURS / "digits.py"), flags)
  assert load_config(name, flags) == by_path
  note = f"note: --config={name} is {OURS / 'digits.py'}\n"
  # Nothing lies where two of them point to.
  assert capsys.readouterr().err == ("" if name == "digits" else note)


@pytest.mark.parametrize("name", ["digits", "evals/digits"])
def test_a_name_finds_evaluations(name, elsewhere):
  by_path = load_evals(str(OURS / "evals" / "digits.py"))
  assert load_evals(name) == by_path


def test_ones_own_config_goes_first_and_that_is_said(elsewhere, capsys):
  folder = elsewhere / "configs"
  folder.mkdir()
  for name in ("digits", "mine"):
    (folder / f"{name}.py").write_text(OWN)
  # A package of another project, whose base is not ours.
  (folder / "__init__.py").touch()
  assert load_config("mine", ["--config.data.path=x"]).seed == 7
  assert capsys.readouterr().err == ""
  assert load_config("digits", ["--config.data.path=x"]).seed == 7
  file = pathlib.Path("configs") / "digits.py"
  said = f"note: --config=digits is {file}, not what comes with big_siglip\n"
  assert capsys.readouterr().err == said
  with pytest.raises(UserError, match=r"did you mean 'mine'.*lora, mine, sce"):
    load_config("minne")


def test_each_config_imports_what_lies_beside_it(elsewhere):
  for number in (1, 2):
    folder = elsewhere / str(number) / "configs"
    folder.mkdir(parents=True)
    shutil.copy(OURS / "base.py", folder)
    with (folder / "base.py").open("a") as file:
      file.write(f"\nSEED = {number}\n")
    own = OWN.replace("7", "base.SEED") + "\nimport beside\n"
    (folder / "own.py").write_text(own)
    (folder / "beside.py").touch()
  before, modules = list(sys.path), set(sys.modules)
  flags = ["--config.data.path=x"]
  for number in (1, 2):
    assert load_config(f"{number}/configs/own.py", flags).seed == number
  assert load_config("finetune", flags).seed == 0, "has ours"
  assert sys.path == before
  assert not {name for name in set(sys.modules) - modules if "configs" in name}


def test_no_such_config_lists_those_there_are(elsewhere):
  names = "b16, digits, finetune, finetune_labels, folder"
  for name in ("nope", "nope.py", "configs/nope.py", "a/digits.py"):
    with pytest.raises(UserError) as caught:
      load_config(name)
    said = str(caught.value)
    assert said.startswith(f"--config={name}: no such file")
    assert f"(by name: {names}" in said and "\n" not in said
    assert "base" not in said
  with pytest.raises(UserError, match=r"\(by name: digits, imagenet, labels"):
    load_evals("nope")


def test_a_flag_and_its_value_may_be_two_arguments(elsewhere):
  flags = ["--config", "digits", "--config.total_steps", "3"]
  assert parse_flags(["", *flags]).total_steps == 3
  with pytest.raises(UserError, match="--config=b16: must be given once"):
    parse_flags(["", *flags, "--config=b16"])


def test_what_configs_name_is_found_from_everywhere(elsewhere):
  name = load_config("scenes").data.tokenizer
  assert make_tokenizer(name, pad_id=0).vocab_size == 36
  assert len(read_templates((), "configs/prompts/clip_best.txt")) == 8
  found = class_files.read("configs/classes/imagenet.json", "it")
  assert len(found.names) == 1_000
  # What is there goes first, and what is nowhere keeps its name.
  (elsewhere / "configs").mkdir()
  shutil.copy(OURS / "scenes.model", "configs/other.model")
  assert shipped.find("configs/other.model").exists()
  (elsewhere / "configs" / "scenes.model").touch()
  own = pathlib.Path("configs/scenes.model")
  assert shipped.find("configs/scenes.model") == own
  assert str(shipped.find("configs/no.model")) == "configs/no.model"
