"""The program keeps its shape: who imports whom, and how long things get."""

import ast
import sys

from layers import imports, layer, module, PACKAGE, parsed, picture, ROOT
import programs

TOOLS = sorted((ROOT / "tools").glob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))
PROGRAMS = [ROOT / "main.py", *TOOLS]
ALL = [*PACKAGE, *CONFIGS, *PROGRAMS]


def _first_imports(file):
  """Returns what a file imports when it is imported itself."""
  names = set()
  for node in parsed(file).body:
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def _within(name, *modules):
  return any(name == m or name.startswith(f"{m}.") for m in modules)


def _offences(files, forbidden):
  return [
    f"{file.relative_to(ROOT)} imports {name}"
    for file in files
    for name in sorted(imports(file))
    if _within(name, *forbidden)
  ]


def _named(name):
  """Returns the module that a name such as "run/workdir" stands for."""
  return f"big_siglip.{name.replace('/', '.')}"


def _of(*names):
  """Returns the files of modules or packages of big_siglip."""
  files = []
  for name in names:
    path = ROOT / "big_siglip" / name
    files += sorted(path.rglob("*.py")) if path.is_dir() else []
    files += [path.with_suffix(".py")] if not path.is_dir() else []
  assert files and all(file.is_file() for file in files)
  return files


def _modules(*names):
  return [f"big_siglip.{name}" for name in names]


def test_every_module_imports_its_own_layer_and_those_below():
  offences = []
  for file in PACKAGE:
    own = layer(module(file))
    if file == ROOT / "big_siglip" / "__init__.py":
      continue  # The face, which loads everything late.
    if own is None:
      offences.append(f"{module(file)}: no layer names it")
      continue
    for name in imports(file):
      theirs = layer(name)
      if theirs is not None and theirs > own:
        offences.append(f"{module(file)} imports {name}")
  assert not offences, "\n".join(offences)


def test_no_rooms_import_each_other_in_a_circle():
  names, rows = picture()
  upward = [
    f"{name} imports {names[j]}"
    for i, (name, marks) in enumerate(zip(names, rows, strict=True))
    for j, mark in enumerate(marks[:i])
    if mark == "x"
  ]
  assert not upward, "\n".join(upward)


def test_models_losses_and_data_do_not_know_each_other():
  assert not _offences(_of("models"), _modules("losses", "data", "optimizer"))
  assert not _offences(_of("losses"), _modules("models", "data", "optimizer"))
  assert not _offences(_of("data"), _modules("models", "losses", "optimizer"))


def test_the_step_gets_model_loss_and_optimizer_as_arguments():
  parts = _modules("models", "losses", "optimizer", "data", "config")
  assert not _offences(_of("train_step"), parts)


def test_no_module_imports_a_program():
  assert not _offences(PACKAGE, ["main", "tools", "configs"])


def test_configs_import_ml_collections_and_each_other_alone():
  for file in CONFIGS:
    for name in imports(file):
      assert _within(name, "ml_collections", "configs", "typing.Any"), file


def test_configs_are_checked_without_jax():
  """A mistake is told before anything is loaded that takes seconds."""
  names = ["errors", "shipped", "schema", "config", "config_files"]
  names += [
    "command_line",
    "run/preemption",
    "commands",
    "bars",
    "progress",
    "durations",
    "extras",
  ]
  names += ["__version__"]
  light = _of(*names[:-1])
  light += [ROOT / "big_siglip" / "__init__.py", *CONFIGS, *PROGRAMS]
  allowed = ["absl", "ml_collections", "configs"]
  allowed += [name.replace("/", ".") for name in _modules(*names)]
  allowed += sys.stdlib_module_names
  for file in light:
    for name in _first_imports(file):
      assert _within(name, *allowed), f"{file} imports {name} at once"


def test_tensorflow_and_torch_are_never_imported():
  other_worlds = ["tensorflow", "torch", "transformers", "tensorboard"]
  assert not _offences(ALL, other_worlds)


def test_what_trains_loads_no_torch():
  """Nor do libraries do it for us, where it is installed."""
  code = (
    "import sys; from big_siglip import loop; print('torch' in sys.modules)"
  )
  assert programs.start("-c", code) == (0, "False\n", "")


def test_only_commands_read_flags():
  allowed = _of("command_line", "commands")
  rest = [file for file in [*PACKAGE, *CONFIGS] if file not in allowed]
  flags = ["absl.flags", "absl.app", "argparse"]
  assert not _offences(rest, flags)


def test_nothing_is_imported_by_a_string():
  assert not _offences(ALL, ["importlib"])


def _lines_of_code(function):
  """Returns the length of a function without its docstring."""
  length = function.end_lineno - function.lineno + 1
  if ast.get_docstring(function):
    docstring = function.body[0]
    length -= docstring.end_lineno - docstring.lineno + 1
  return length


def test_files_and_functions_stay_short():
  too_long = []
  for file in ALL:
    text = file.read_text()
    if len(text.splitlines()) > 300:
      too_long.append(str(file))
    for node in ast.walk(parsed(file)):
      if (
        isinstance(node, ast.FunctionDef)
        and node.name != "get_config"
        and _lines_of_code(node) > 60
      ):
        too_long.append(f"{file}: {node.name}")
  assert not too_long


def test_every_public_name_is_documented():
  bare = []
  for file in ALL:
    tree = parsed(file)
    for node in [tree, *tree.body]:
      documented = (ast.Module, ast.FunctionDef, ast.ClassDef)
      if not isinstance(node, documented):
        continue
      name = getattr(node, "name", "the module")
      if not name.startswith("_") and not ast.get_docstring(node):
        bare.append(f"{file}: {name}")
  assert not bare
