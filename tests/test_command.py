"""The command `big-siglip`, which runs all the others by their names."""

import ast

from layers import parsed
import programs
import pytest
import runs

import big_siglip
from big_siglip.commands import main

PROGRAM = "big_siglip/__main__.py"
FOLDER = runs.ROOT / "big_siglip" / "commands"
# Not commands: this one, and what runs them.
OTHERS = {"__init__", "labelled", "main", "program", "sight", "tables"}


def test_every_command_is_listed_with_the_first_line_of_its_help():
  text = (FOLDER / "main.py").read_text()
  found = {}
  for file in FOLDER.glob("*.py"):
    if file.stem not in OTHERS:
      assert f"import {file.stem} as command" in text
      found[file.stem] = ast.get_docstring(parsed(file)).splitlines()[0]
  assert sorted(found.values()) == sorted(main.LINES.values())
  status, output, said = programs.call(PROGRAM, "--help")
  assert (status, said) == (0, "")
  for name, line in main.LINES.items():
    assert f"  {name} " in output
    assert line in " ".join(output.split())


def test_a_command_of_each_name_is_found_and_has_that_line():
  for name, line in main.LINES.items():
    status, output, said = programs.call(PROGRAM, name, "--help")
    assert (status, said) == (0, "")
    assert output.startswith(line), name
    assert f"\nbig-siglip {name} " in output, "an example"
    assert "\n\nflags:\n  --" in output


def test_help_and_version():
  wanted = programs.call(PROGRAM, "plan", "--help")
  for words in (("plan", "-h"), ("help", "plan"), ("plan", "--json", "--help")):
    assert programs.call(PROGRAM, *words) == wanted
  assert programs.call(PROGRAM, "--version") == (
    0,
    f"big-siglip {big_siglip.__version__}\n",
    "",
  )
  status, output, said = programs.call(PROGRAM)
  assert (status, output) == (2, "")
  assert "usage: big-siglip COMMAND" in said


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["trian"], "no command 'trian'; did you mean 'train'?"),
    (["import_weights"], "did you mean 'import'?"),
    (["rewrite-tfrecord"], "did you mean 'rewrite_tfrecord'?"),
    (["help", "clasify"], "did you mean 'classify'?"),
    (["photos"], "no command 'photos' (big-siglip --help lists them)"),
    (["--config=a"], "name a command first, as in big-siglip train --config=a"),
    (["embed", "--outptu=x"], "--outptu: no such flag; did you mean --output?"),
    (["train", "--confg=a"], "--confg: no such flag; did you mean --config?"),
    (["train", "--cofig.seed=1"], "did you mean --config.seed?"),
    (["embed", "--config.seed=1"], "--config.seed: no such flag; --help"),
    (["embed", "--zzzz"], "--zzzz: no such flag; --help lists all"),
  ],
)
def test_mistakes_are_told_in_one_line(arguments, said):
  assert said in programs.said_in_one_line(PROGRAM, *arguments)
