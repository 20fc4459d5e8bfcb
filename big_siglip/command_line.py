"""From command-line arguments to a config, with every mistake in one error."""

from collections.abc import Sequence
import difflib
import re
import sys

from absl import flags
from ml_collections import config_flags, ConfigDict

from big_siglip import config_files
from big_siglip.config import find_problems
from big_siglip.errors import exit_on_error, raise_problems, UserError
from big_siglip.schema.fields import evaluation_problems


def parse_flags(argv: Sequence[str]) -> ConfigDict:
  """Parses absl flags and returns the config that `--config` names.

  `--config=NAME:key=value,other.key=value` is short for `--config=NAME
  --config.key=value --config.other.key=value`. NAME is a file, or a config
  that is found by its name (config_files.find).

  Args:
    argv: the program's name and its arguments.

  Raises:
    UserError: unknown flags or fields, wrong types, or no such config file.
  """
  config = parse_optional_config(argv)
  if config is None:
    raise UserError(_must_be_given("config"))
  return config


def parse_arguments(argv: Sequence[str]) -> list[str]:
  """Parses absl flags and returns the program's name and what is no flag.

  For `absl.app.run`, whose own parser says a mistake in two lines and exits
  with 1; ours says it as all others and exits with 2.
  """
  with exit_on_error():
    return _parse(argv)


def parse_optional_config(argv: Sequence[str]) -> ConfigDict | None:
  """Does what `parse_flags` does, and returns None without `--config`."""
  given, others = _take(argv, "config")
  _parse_others(others, "config")
  return load_config(*given) if given else None


def parse_evaluation(
  argv: Sequence[str],
) -> tuple[ConfigDict | None, ConfigDict | None]:
  """Returns the configs of `--config` and `--evals`, None for one not given.

  `--evals=FILE.py` names a file whose `get_config()` returns evaluations alone,
  {name: section of config.evals}; `--evals.NAME.FIELD=VALUE` overrides.

  Args:
    argv: the program's name and its arguments.

  Raises:
    UserError: as `parse_flags`, for both.
  """
  config, others = _take(argv, "config")
  evals, others = _take(others, "evals")
  _parse_others(others, "config", "evals")
  return (
    load_config(*config) if config else None,
    load_evals(*evals) if evals else None,
  )


def _take(
  argv: Sequence[str], name: str
) -> tuple[tuple[str, list[str]] | None, list[str]]:
  """Returns (a config's file, its overrides), or None, and the other flags."""
  argv = _joined(argv, name)
  own = [a for a in argv[1:] if re.match(rf"--?{name}[.=]", a)]
  others = [a for a in argv if a not in own]
  files = [a for a in own if re.match(rf"--?{name}=", a)]
  if not own:
    return None, others
  if not files:
    raise UserError(_must_be_given(name))
  if files[1:]:
    raise UserError(f"{' '.join(files)}: must be given once")
  overrides = [a for a in own if a not in files]
  path, _, options = files[0].split("=", 1)[1].partition(":")
  short = [f"--{name}.{option}" for option in options.split(",") if option]
  return (path, short + overrides), others


def _joined(argv: Sequence[str], name: str) -> list[str]:
  """Returns the arguments, `--config NAME` as `--config=NAME`, and so on."""
  joined = []
  for argument in argv:
    last = joined[-1] if joined[1:] else ""
    if not argument.startswith("-") and re.fullmatch(
      rf"--?{name}(\.[\w.]+)?", last
    ):
      joined[-1] = f"{last}={argument}"
    else:
      joined.append(argument)
  return joined


def _must_be_given(name: str) -> str:
  return (
    f"--{name}=NAME or --{name}=FILE.py must be given "
    f"{config_files.by_name(name)}"
  )


def _parse_others(argv: Sequence[str], *taken: str) -> None:
  rest = _parse(argv, *taken)
  if rest[1:]:
    raise UserError(f"unexpected argument {rest[1]!r} (flags start with --)")


def _parse(argv: Sequence[str], *taken: str) -> list[str]:
  """Returns what is no flag; `taken` are the flags that `_take` took."""
  try:
    return flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:
    raise UserError(_unknown_flag(error.flagname, taken)) from error
  except flags.Error as error:
    raise UserError(str(error)) from error


def _unknown_flag(name: str, taken: Sequence[str]) -> str:
  first, dot, rest = name.partition(".")
  there = taken if dot else ["help", *taken, *flags.FLAGS]
  close = difflib.get_close_matches(first, there, n=1)
  found = f"did you mean --{close[0]}{dot}{rest}?" if close else None
  return f"--{name}: no such flag; {found or '--help lists all'}"


def load_evals(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
  """Returns the evaluations of a file after overrides, checked and locked.

  Args:
    path: a Python file with `get_config()`, or its name.
    overrides: "--evals.NAME.FIELD=VALUE" each.

  Raises:
    UserError: as `load_config`.
  """

  def find(evals: ConfigDict) -> list[str]:
    return evaluation_problems(evals, "evals")

  return _load_checked(path, overrides, "evals", find)


def load_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
  """Returns the config of a file after overrides, checked and locked.

  Args:
    path: a Python file with `get_config()`, or its name: "finetune".
    overrides: "--config.FIELD=VALUE" each; the field must exist and the value
      fit its type.

  Raises:
    UserError: lists every override that is wrong and every value of the rest
      that `config.find_problems` objects to, or says why the file cannot be
      loaded.
  """
  return _load_checked(path, overrides, "config", find_problems)


def load_unchecked(path: str) -> ConfigDict:
  """Returns the config of a file, to be changed and checked by others.

  Raises:
    UserError: the file cannot be loaded.
  """
  return _load(path, [], "config")


def _load_checked(path, overrides, name, find) -> ConfigDict:
  _, note = config_files.find(path, name)
  if note:
    print(f"note: --{name}={path} {note}", file=sys.stderr)
  try:  # A file that is run again for each override takes a while.
    config, problems = _load(path, list(overrides), name), []
  except UserError:
    config, problems = _load_right(path, overrides, name)
  raise_problems(problems + find(config))
  return config


def _load_right(
  path: str, overrides: Sequence[str], name: str
) -> tuple[ConfigDict, list[str]]:
  """Returns the config after the right overrides, and what is wrong of each."""
  _load(path, [], name)  # A mistake in the file itself is told once.
  problems, right = [], []
  for override in overrides:
    try:
      _load(path, [override], name)
      right.append(override)
    except UserError as error:
      problems.append(str(error))
  return _load(path, right, name), problems


def _load(path: str, overrides: list[str], name: str) -> ConfigDict:
  # A FlagValues of its own, so that each override can be tried alone.
  values = flags.FlagValues()
  file, _ = config_files.find(path, name)
  argv = ["", f"--{name}={file}", *overrides]
  try:
    with config_files.importing(file):
      config_flags.DEFINE_config_file(name, flag_values=values, sys_argv=argv)
      values(argv)
  except flags.Error as error:
    raise UserError(_explain(path, overrides, name, error)) from error
  except Exception as error:
    if not overrides:  # Whatever the file's own code raised.
      kind = type(error).__name__
      raise UserError(
        f"--{name}={path}: cannot be loaded ({kind}: {error})"
      ) from error
    hint = re.search(r'Did you mean "(\w+)"', str(error))
    did_you_mean = f"; did you mean {hint[1]!r}?" if hint else ""
    raise UserError(
      f"{_name(overrides[0])}: {path} has no such field{did_you_mean}"
    ) from error
  if not isinstance(values[name].value, ConfigDict):
    raise UserError(f"--{name}={path}: get_config() must return a ConfigDict")
  return values[name].value


def _name(override: str) -> str:
  return override.lstrip("-").partition("=")[0]


def _explain(
  path: str, overrides: list[str], name: str, error: flags.Error
) -> str:
  if overrides:
    reason = str(error).partition(": ")[2] or "a value is missing"
    return f"{overrides[0].lstrip('-')}: wrong type ({reason})"
  last_line = str(error).strip().splitlines()[-1]
  return f"--{name}={path}: cannot be loaded ({last_line})"
