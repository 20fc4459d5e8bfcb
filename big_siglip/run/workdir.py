"""The folder of a run: made, checked and kept to one config."""

import json
from typing import Any

from etils import epath
import jax
from ml_collections import ConfigDict

from big_siglip import extras, shipped
from big_siglip.config import changed_fields, has_image_tower
from big_siglip.data.text import is_json
from big_siglip.errors import UserError
from big_siglip.schema.fields import complete_config

# The tokenizer of a run, kept beside its checkpoints: SentencePiece, or of
# Hugging Face.
_TOKENIZERS = ("tokenizer.model", "tokenizer.json")
_EMBEDDING = "embedding.json"  # Of the embeddings that a run trains on.
_LOGS = ("metrics.jsonl", "skipped.jsonl", "starts.jsonl")


def check(
  workdir: str, config: ConfigDict
) -> tuple[epath.Path, dict[str, Any]]:
  """Returns a run's folder and its config.json, without writing anything.

  Where a run has trained, the fields that decide about its parameters must be
  as they were. One that ended before, for its weights or data, binds nobody.

  Raises:
    UserError: it cannot be read, or is of another config.
  """
  folder = absolute(workdir)
  new = as_json(config)
  try:
    old = read_config(folder) if (folder / "config.json").exists() else None
  except OSError as error:
    raise UserError(f"--workdir={workdir}: {error.strerror}") from error
  if old is not None and new["data"]["tokenizer"] == find_tokenizer(folder):
    new["data"]["tokenizer"] = old["data"]["tokenizer"]  # The copy kept of it.
  changes = changed_fields(old, new) if old is not None else []
  if changes and has_trained(folder):
    if any(change.startswith("config.total_steps:") for change in changes):
      changes.append(f"(to train for longer: {how_to_go_on(folder)})")
    raise UserError(
      f"--workdir={workdir} is of another config; take another folder, or set "
      "back:\n  " + "\n  ".join(changes)
    )
  return folder, new


def claim(workdir: str, config: ConfigDict) -> epath.Path:
  """Returns the folder after making sure it is this run's; see `check`.

  Process 0 writes `config.json`.

  Raises:
    UserError: not writable, or of another config.
  """
  folder, new = check(workdir, config)
  if jax.process_index() == 0:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      if not has_trained(folder):
        _clear(folder, config, new)
      keep_tokenizer(folder, config.data.tokenizer)
      if not has_image_tower(config):
        _copy(_description(config), folder / _EMBEDDING)
      write_whole(folder / "config.json", json.dumps(new, indent=2) + "\n")
    except OSError as error:
      raise UserError(
        f"--workdir={workdir}: not writable ({error.strerror or error})"
      ) from error
  return folder


def absolute(path: str) -> epath.Path:
  """Returns a folder as Orbax wants it; a remote one stays as it is."""
  folder = epath.Path(path)
  return folder if "://" in path else folder.expanduser().resolve()


def saved_steps(folder: epath.Path) -> list[int]:
  """Returns the steps of a run's checkpoints, oldest first."""
  checkpoints = folder / "checkpoints"
  if not checkpoints.is_dir():
    return []
  names = [child.name for child in checkpoints.iterdir()]
  return sorted(int(name) for name in names if name.isdecimal())


def has_trained(folder: epath.Path) -> bool:
  """Returns whether a run in this folder has saved a step, or logged one."""
  if saved_steps(folder):
    return True
  if any(folder.glob("damaged-*")):
    return True
  try:  # Before the first step there may be evaluations.
    return '"loss"' in (folder / "metrics.jsonl").read_text()
  except FileNotFoundError:  # Perhaps cleared by process 0 at this moment.
    return False


def _clear(folder: epath.Path, config: ConfigDict, new: dict[str, Any]) -> None:
  """Removes what a run left that has not trained, so that it is made anew.

  The files that it copied may have been mended since under the same names, so
  the copies go even where the config is the same.
  """
  path = folder / "config.json"
  if not path.exists():
    return
  copies = {*_TOKENIZERS, _EMBEDDING} - _originals(folder, config)
  logs = _LOGS if changed_fields(read_config(folder), new) else ()
  for name in (*copies, *logs):
    (folder / name).unlink(missing_ok=True)
  if logs and (folder / "tensorboard").is_dir():
    (folder / "tensorboard").rmtree()


def _originals(folder: epath.Path, config: ConfigDict) -> set[str]:
  """Returns the files in a run's folder that its config itself names."""
  given = [epath.Path(config.data.tokenizer)]
  if not has_image_tower(config):
    given.append(_description(config))
  paths = [path.expanduser().resolve() for path in given]
  return {path.name for path in paths if path.parent == folder}


def _description(config: ConfigDict) -> epath.Path:
  """Returns what describes the embeddings that a run trains on."""
  # Imported late: it needs an optional library.
  with extras.needed_by("config.data.name='embeddings'"):
    from big_siglip.data.embedding_description import (
      NAME,
      OLD_NAMES,
    )
  files = [epath.Path(config.data.path) / n for n in (NAME, OLD_NAMES[NAME])]
  return next((file for file in files if file.exists()), files[0])


def how_to_go_on(folder: epath.Path) -> str:
  """Returns the flags of a run that goes on from that in `folder`."""
  return (
    f"--config.init.path={folder} --config.init.state=all "
    "--config.total_steps=MORE --workdir=ANOTHER"
  )


def keep_tokenizer(folder: epath.Path, tokenizer: str | None) -> None:
  """Copies the tokenizer's file into a run's folder, where it has one."""
  if tokenizer not in (None, "bytes") and not find_tokenizer(folder):
    name = _TOKENIZERS[is_json(tokenizer)]
    _copy(epath.Path(shipped.find(tokenizer)), folder / name)


def find_tokenizer(folder: epath.Path) -> str | None:
  """Returns the file that `keep_tokenizer` left in a folder."""
  files = [folder / name for name in _TOKENIZERS]
  return next((str(file) for file in files if file.exists()), None)


def read_embedding(folder: epath.Path) -> dict[str, Any]:
  """Returns what a run's embeddings said of themselves; see `claim`.

  Raises:
    UserError: the file is missing or damaged.
  """
  path = folder / _EMBEDDING
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: cannot be read ({error})") from error


def write_whole(path: epath.Path, text: str) -> None:
  """Writes a file that nobody ever sees half written, not even after a kill."""
  partial = path.with_name(f".{path.name}.partial")
  partial.write_text(text)
  partial.replace(path)


def read_config(folder: epath.Path) -> dict[str, Any]:
  """Returns what `config.json` of a run holds, in today's fields and words.

  Raises:
    UserError: there is none, or it is no JSON object.
  """
  path = folder / "config.json"
  if not path.exists():
    raise UserError(f"{folder}: no run lies here (config.json is missing)")
  try:
    value = json.loads(path.read_text())
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path}: not JSON ({error})") from error
  if not isinstance(value, dict):
    raise UserError(f"{path}: must be a JSON object")
  return complete_config(value)


def as_json(config: ConfigDict) -> dict[str, Any]:
  """Returns the config as JSON would read it back: tuples become lists."""
  return json.loads(json.dumps(config.to_dict()))


def _copy(source: epath.Path, target: epath.Path) -> None:
  """Copies a file, whole, to where none is yet."""
  if not target.exists():
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(source.expanduser().read_bytes())
    partial.replace(target)
