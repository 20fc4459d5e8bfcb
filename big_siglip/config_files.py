"""Configs by their names, and what they find when they import others."""

from collections.abc import Iterator
import contextlib
import difflib
import pathlib
import sys
import types

from big_siglip import shipped
from big_siglip.errors import UserError

_PACKAGE = "configs"  # In `from configs import base`.
_PARTS = (
  "base",
  "dense",
  "terms",
  "__init__",
)  # Of others, and none of their own.
_EVALS = "evals"  # The folder of those that are evaluations alone.


def find(given: str, flag: str) -> tuple[pathlib.Path, str | None]:
  """Returns the file that a flag means, and what to say where it may surprise.

  Args:
    given: a file; or the name of one in the user's configs/ or the package's,
      such as "finetune" or "configs/finetune.py".
    flag: "config" or "evals".

  Raises:
    UserError: there is none.
  """
  path = pathlib.Path(given).expanduser()
  if path.is_file():
    return path, None
  name = given.removeprefix("configs/").removesuffix(".py")
  if flag == _EVALS:
    name = name.removeprefix("evals/")
  own, ours = _named(flag)
  if name in own:
    note = f"is {own[name]}, not what comes with big_siglip"
    return own[name], note if name in ours else None
  if name in ours:
    as_file = name != given.removeprefix("evals/")
    return ours[name], f"is {ours[name]}" if as_file else None
  close = difflib.get_close_matches(name, [*own, *ours], n=1)
  hint = f"; did you mean {close[0]!r}?" if close else ""
  raise UserError(f"--{flag}={given}: no such file{hint} {by_name(flag)}")


def by_name(flag: str) -> str:
  """Returns the names there are, for the end of a message."""
  own, ours = _named(flag)
  return f"(by name: {', '.join(sorted({*own, *ours}))})"


@contextlib.contextmanager
def importing(path: pathlib.Path) -> Iterator[None]:
  """Lets a config import others, wherever the program was started.

  `from configs import base` finds what lies in configs/ above the file, then in
  the current folder, then in the package; all else what lies in the folders
  above that have a configs/, in the current one, and beside the file. Each
  config has its own: what another one imported under these names is not seen.
  """
  above = path.resolve().parents
  roots = [folder for folder in above if (folder / _PACKAGE).is_dir()]
  roots = [*dict.fromkeys([*roots, pathlib.Path.cwd(), shipped.ROOT])]
  # Made, not found: folders of several owners are one package, even where one
  # has an __init__.py.
  package = types.ModuleType(_PACKAGE)
  package.__path__ = [str(root / _PACKAGE) for root in roots]
  before = _taken_out()
  sys.modules[_PACKAGE] = package
  first = [str(root) for root in roots if root != shipped.ROOT]
  path_before = list(sys.path)
  sys.path[:] = [*first, *sys.path, str(above[0])]
  try:
    yield
  finally:
    sys.path[:] = path_before
    _taken_out()
    sys.modules.update(before)


def _taken_out() -> dict[str, types.ModuleType]:
  """Forgets and returns all modules of configs."""
  names = [n for n in sys.modules if n.partition(".")[0] == _PACKAGE]
  return {name: sys.modules.pop(name) for name in names}


def _named(flag: str) -> tuple[dict[str, pathlib.Path], ...]:
  """Returns {name: file} of the user's configs, and of the package's."""
  own = pathlib.Path(_PACKAGE)
  if own.resolve() == shipped.CONFIGS:
    return {}, _listed(shipped.CONFIGS, flag)
  return _listed(own, flag), _listed(shipped.CONFIGS, flag)


def _listed(root: pathlib.Path, flag: str) -> dict[str, pathlib.Path]:
  if flag == _EVALS:
    return {file.stem: file for file in sorted((root / _EVALS).glob("*.py"))}
  files = [*root.glob("*.py"), *root.glob("*/*.py")]
  names = {str(f.relative_to(root).with_suffix("")): f for f in sorted(files)}
  return {
    name: file
    for name, file in names.items()
    if file.stem not in _PARTS and file.parent.name != _EVALS
  }
