"""Core requirements are what load and training need; the rest are extras."""

import ast
import configparser
import functools
from importlib import metadata
import re
import subprocess
import sys

from layers import module, PACKAGE, parsed, ROOT
import programs
import pytest

from big_siglip import extras
from big_siglip.errors import UserError

# What starts without any extra: the Python face, and these commands.
_CORE = (
  "api",
  "trained.loading",
  "commands.train",
  "commands.evaluate",
  "commands.compare",
  "commands.classify",
  "commands.calibrate",
  "commands.probe",
  "commands.import_weights",
  "commands.export_weights",
  "commands.train_tokenizer",
  "labels.classifying",
  "labels.images",
  "evaluation.results",
  "evaluation.rows",
  "evaluation.compare",
  "weights.export",
  "plan.plan",
  "plan.dry_run",
)
# What jax brings itself, some of it by its own extras.
_OF_JAX = ("jaxlib", "jax_plugins", "libtpu")
# Of people who work on the project.
_OURS = {"dev"}


@functools.cache
def _requirements():
  """Returns {extra: names of its distributions}; "" has the core's."""
  config = configparser.ConfigParser()
  config.read(ROOT / "setup.cfg")
  lines = {"": config["options"]["install_requires"]}
  lines |= dict(config["options.extras_require"])
  return {extra: _names(text, lines) for extra, text in lines.items()}


def _names(text, extras_lines):
  found = set()
  for line in text.splitlines():
    if not line or line.startswith("#"):
      continue
    name = re.match(r"[\w.-]+", line)[0].lower().replace("_", "-")
    if name != "big-siglip":
      found.add(name)
      continue
    for extra in line.partition("[")[2].rstrip("]").split(","):
      found |= _names(extras_lines[extra.strip()], extras_lines)
  return found


@functools.cache
def _distributions():
  """Returns {module: distributions that have it} of what is installed."""
  return {
    name: {distribution.lower().replace("_", "-") for distribution in found}
    for name, found in metadata.packages_distributions().items()
  }


def _foreign_imports():
  """Yields (file, module) of what is neither Python's nor the project's."""
  own = {"big_siglip", "configs", "__future__", *sys.stdlib_module_names}
  for file in PACKAGE:
    for node in ast.walk(parsed(file)):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module]
      for name in names:
        if (top := name.partition(".")[0]) not in own:
          yield file.relative_to(ROOT), top


def test_whatever_is_imported_is_required_by_the_core_or_an_extra():
  names = _requirements()
  missing = set()
  for file, name in _foreign_imports():
    brought = _distributions().get(name, {name.replace("_", "-")})
    required = names[""] | names.get(extras.BRINGS.get(name), set())
    if name not in _OF_JAX and not brought & required:
      missing.add(f"{file}: {name}")
  assert not missing


def test_every_extra_that_is_named_is_one_and_is_documented():
  there = set(_requirements()) - {""}
  named = {*extras.BRINGS.values(), *extras.STORES.values()}
  assert named <= there
  text = (ROOT / "docs" / "install.md").read_text()
  rows = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
  assert rows == there - _OURS
  everything = named - {"cuda", "tpu", "prepare"}
  for name in everything:
    assert _requirements()[name] <= _requirements()["all"], name


@functools.cache
def _at_once(name):
  """Returns the modules that importing a module of the package imports."""
  files = {module(file): file for file in PACKAGE}
  assert name in files
  found, left = set(), [name]
  while left:
    name = left.pop()
    if name in found:
      continue
    found.add(name)
    if name not in files:
      continue
    left.append(name.rpartition(".")[0] or name)  # Its package, too.
    for node in parsed(files[name]).body:
      if isinstance(node, ast.Import):
        left += [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        left.append(node.module)
        left += [f"{node.module}.{alias.name}" for alias in node.names]
  return found


@pytest.mark.parametrize("name", _CORE)
def test_what_needs_no_extra_imports_none_at_once(name):
  tops = {
    imported.partition(".")[0] for imported in _at_once(f"big_siglip.{name}")
  }
  assert "big_siglip" in tops
  assert not tops & extras.BRINGS.keys()


def test_what_trains_is_seen_to_import_much():
  """Else the test above would pass for its blindness."""
  found = _at_once("big_siglip.api")
  assert {"jax", "grain", "big_siglip.data.images", "PIL"} <= found


def test_a_missing_package_is_one_line():
  with (
    pytest.raises(UserError) as error,
    extras.needed_by("--index=hnsw"),
  ):
    raise ModuleNotFoundError("No module named 'faiss'", name="faiss.swig")
  assert str(error.value) == (
    "--index=hnsw needs faiss: pip install 'big_siglip[search]'"
  )
  # As fsspec has it.
  with (
    pytest.raises(UserError, match=r"^x needs s3fs: pip .*\[s3\]'$"),
    extras.needed_by("x"),
  ):
    try:
      raise ModuleNotFoundError("No module named 's3fs'", name="s3fs")
    except ImportError as cause:
      raise ImportError("Install s3fs") from cause
  # There, and broken: why is said.
  with (
    pytest.raises(UserError, match=r"x needs cv2 \(libGL.so: .*\): pip"),
    extras.needed_by("x"),
  ):
    raise ImportError("libGL.so: cannot open", name="cv2")
  for name in ("json_", "big_siglip.nothing"):  # Faults of ours.
    with pytest.raises(ModuleNotFoundError), extras.needed_by("x"):
      raise ModuleNotFoundError("No module", name=name)


@pytest.mark.parametrize(
  ("command", "module", "extra"),
  [
    (("embed", "--checkpoint=a", "--images=b", "--output=c"), "pyarrow", ""),
    (("search", "--embeddings=a", "--query=b"), "pyarrow.parquet", "parquet"),
    (("rewrite_tfrecord", "--input=a", "--output=b"), "google_crc32c", ""),
    (("evaluate", "--checkpoint=a", "--output=b"), "matplotlib", "report"),
  ],
)
def test_commands_name_their_extra(command, module, extra):
  """In a process of its own, in which nothing has been imported yet."""
  code = (
    f"import sys; sys.modules[{module!r}] = None; "
    f"sys.argv = ['big-siglip', *{command!r}]; "
    "from big_siglip.commands.main import main; main()"
  )
  ended = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
  )
  extra = extra or extras.BRINGS[module]
  said = programs.without_progress(ended.stderr)
  assert ended.returncode == 2 and len(said.splitlines()) == 1, said
  assert f"pip install 'big_siglip[{extra}]'" in said
