"""What README and docs name is there: pages, commands, flags, extras."""

import ast
import configparser
import functools
import re
import shlex

from layers import LAYERS, parsed, ROOT
import pytest

from big_siglip import command_line
from big_siglip.commands import main
from big_siglip.errors import UserError

COMMANDS = ROOT / "big_siglip" / "commands"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS]
# What --help and configs say is checked as the pages are.
TEXTS = [*PAGES, *COMMANDS.glob("*.py"), *(ROOT / "configs").rglob("*.py")]
# Of what stands in a checkout, and of other projects.
_SCRIPTS = [
  *(ROOT / "tools" / "launch").glob("*.sh"),
  *(ROOT / "benchmarks").rglob("*.py"),
  *(ROOT / "studies").glob("*.py"),
  ROOT / "tests" / "gaps.py",
]
_MAIN = 'if __name__ == "__main__"'
_PIP = {"help", "version", "quiet"}
_WITH_CONFIG = {"parse_flags", "parse_evaluation", "parse_optional_config"}


def _names(pages):
  return [str(page.relative_to(ROOT)) for page in pages]


each_page = pytest.mark.parametrize("page", PAGES, ids=_names(PAGES))
each_text = pytest.mark.parametrize("page", TEXTS, ids=_names(TEXTS))


def _code(text):
  """Returns the lines of a page's code blocks, without their margin."""
  lines, fenced = [], False
  for line in text.splitlines():
    if line.startswith("```"):
      fenced = not fenced
    elif fenced or line.startswith("    "):
      lines.append(line if fenced else line[4:])
  return lines


def _commands(page):
  """Returns (name, arguments) of each big-siglip command that a page shows."""
  text = page.read_text()
  if page.suffix == ".py":
    # The indentation of examples is gone.
    lines = (ast.get_docstring(parsed(page)) or "").splitlines()
  else:
    inline = re.findall(r"`(big-siglip [^`]+)`", text)
    lines = [*_code(text), *(" ".join(span.split()) for span in inline)]
  joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
  found = []
  for line in joined.splitlines():
    shown = re.fullmatch(r"(?:[A-Z_]+=\S+ )*big-siglip (.*)", line.strip())
    if shown:
      words = shlex.split(shown[1].replace("[", "").replace("]", ""), True)
      end = words.index("--") if "--" in words else None
      found.append((words[0], words[1:end]))
  return found


@functools.cache
def _flags(name):
  """Returns the flags of a command of big-siglip."""
  # Read, not imported: all commands define theirs in the same table.
  case = rf'case "{name}":\n      from big_siglip.commands import (\w+) as'
  module = re.findall(case, (COMMANDS / "main.py").read_text())[0]
  found = {"help"}
  for node in ast.walk(parsed(COMMANDS / f"{module}.py")):
    if not isinstance(node, ast.Call):
      continue
    called = ast.unparse(node.func)
    first = node.args[0] if node.args else None
    if called == "_FileFlag" or called.startswith("flags.DEFINE_"):
      if isinstance(first, ast.Constant):
        found |= {first.value, f"no{first.value}"}
    elif called == "flags.adopt_module_key_flags":
      found |= {"max_patches"}  # Of commands/sight.py.
    elif called in _WITH_CONFIG:
      found |= {"config"} | ({"evals"} if "evaluation" in called else set())
  return found


@functools.cache
def _all_flags():
  """Returns the flags of all commands, and of what a checkout has besides."""
  found = set().union(*map(_flags, main.LINES), _PIP)
  for file in _SCRIPTS:
    found |= set(re.findall(r"--([a-z][a-z_]*)", file.read_text()))
    # Of absl or argparse.
    found |= set(re.findall(r'(?:DEFINE_\w+\(\s*)"(\w+)"', file.read_text()))
  return found


@functools.cache
def _anchors(page):
  """Returns the anchors that GitHub gives to a page's headings."""
  found = set()
  for heading in re.findall(r"^#+ (.*)$", page.read_text(), re.M):
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    found.add(kept.replace(" ", "-"))
  return found


@each_page
def test_links_lead_somewhere(page):
  text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
  for link in re.findall(r"\]\(([^)\s]+)\)", text):
    path, _, anchor = link.partition("#")
    if "://" in link:
      continue
    target = (page.parent / path).resolve() if path else page
    assert target.exists(), link
    if anchor:
      assert anchor in _anchors(target), link


def test_every_page_stands_in_the_index():
  index = (ROOT / "docs" / "README.md").read_text()
  for page in DOCS:
    if page.name != "README.md":
      assert f"]({page.name})" in index, page.name


@each_text
def test_commands_and_their_flags_exist(page):
  for name, arguments in _commands(page):
    if name in ("COMMAND", "NAME", "--help", "--version", "help"):
      continue
    assert name in main.LINES, f"big-siglip {name}"
    for argument in arguments:
      if argument.startswith("--"):
        flag = re.split(r"[=.]", argument[2:])[0]
        assert flag in _flags(name), f"big-siglip {name} {argument}"


@each_text
def test_configs_and_their_fields_exist(page):
  """Each --config is loaded with the fields that the page sets."""
  for name, arguments in _commands(page):
    for kind in ("config", "evals"):
      own = [a for a in arguments if re.match(rf"--{kind}[.=]", a)]
      given = [a for a in own if a.startswith(f"--{kind}=")]
      if given and "..." not in given[0] and name in main.LINES:
        path, _, short = given[0].partition("=")[2].partition(":")
        changes = [f"--{kind}.{c}" for c in short.split(",") if c]
        changes += [a for a in own if a != given[0]]
        load = getattr(command_line, f"load_{kind}")
        try:
          load(path, changes)
        except UserError as error:
          pytest.fail(f"{' '.join([name, *arguments])}: {error}")


@each_page
def test_flags_in_the_text_exist(page):
  for span in re.findall(r"`(--[^`]+)`", page.read_text()):
    for flag in re.findall(r"(?<!\S)--([a-z][a-z_]*)", span):
      if flag not in ("config", "evals"):
        assert flag in _all_flags(), span


@each_page
def test_fields_in_the_text_exist(page):
  base = command_line.load_unchecked(str(ROOT / "configs" / "base.py"))
  # What a message begins with is a mistake.
  pattern = r"`(?:--)?config\.([a-z_.]++)(?!: )"
  for name in re.findall(pattern, page.read_text()):
    place = base
    for part in name.rstrip(".").split("."):
      if part in ("json", "py"):  # A file.
        break
      # What is empty takes sections by names of the user's.
      if not hasattr(place, "keys") or not place:
        break
      assert part in place, f"config.{name}"
      place = place[part]


@each_page
def test_files_of_the_project_exist(page):
  """Configs, sources and tests that pages name; a changelog names old ones."""
  if page.name == "CHANGELOG.md":
    return
  pattern = r"(?<![\w/.(-])((?:configs|tests|tools|benchmarks|studies)/[\w/.]+)"
  for name in re.findall(pattern, page.read_text()):
    assert "NAME" in name or (ROOT / name.rstrip(".")).exists(), name
  for name in re.findall(r"python -m ([\w.]+)", page.read_text()):
    if "NAME" not in name and name.split(".")[0] in (
      "benchmarks",
      "studies",
      "big_siglip",
    ):
      assert (ROOT / f"{name.replace('.', '/')}.py").exists() or (
        ROOT / name.replace(".", "/") / "__main__.py"
      ).exists(), name


@each_page
def test_make_has_what_pages_ask_of_it(page):
  targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
  text = page.read_text()
  for name in re.findall(r"(?:^    |`)make ([a-z][\w-]*)", text, re.M):
    assert name in targets, f"make {name}"


def test_every_extra_has_its_line_in_the_readme():
  settings = configparser.ConfigParser()
  settings.read(ROOT / "setup.cfg")
  extras = set(settings["options.extras_require"])
  text = (ROOT / "README.md").read_text()
  listed = set(re.findall(r"^\| `\[([a-z0-9]+)\]` \|", text, re.M))
  assert listed == extras


def test_every_benchmark_and_study_is_told_of():
  text = (ROOT / "docs" / "results.md").read_text()
  files = [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("studies/*.py")]
  names = [file.stem for file in files if _MAIN in file.read_text()]
  names += [file.parent.name for file in ROOT.glob("benchmarks/*/__main__.py")]
  assert len(names) > 10
  for name in names:
    assert f"| `{name}` |" in text, name


def test_the_layers_in_the_docs_are_those_of_the_program():
  text = (ROOT / "docs" / "architecture.md").read_text()
  table = text.partition("## Layers")[2].partition("## Rooms")[0]
  rows = re.findall(r"^\| (`[^|]+`) \|", table, re.M)
  told = [set(re.findall(r"`([^`]+)`", row)) for row in rows]
  names = [{n.replace(".", "/") for n in layer} for layer in LAYERS]
  assert told == names[::-1]
