"""Puts an exported folder on the Hugging Face hub, through huggingface_hub."""

from collections.abc import Iterator
import contextlib
import pathlib
import re
from typing import Any

from big_siglip.errors import UserError

_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def open_repository(name: str, *, public: bool) -> str:
  """Makes a repository unless it is there; returns its address.

  One that is there stays private or public as it is.

  Args:
    name: "ORG/NAME".
    public: whether everyone may see a new one.

  Raises:
    UserError: huggingface_hub is not installed or has no login, the hub cannot
      be reached, or does not let this account do that.
  """
  api = _api(name)
  with _told(name):
    made = api.create_repo(name, private=not public, exist_ok=True)
  return str(made)


def upload(name: str, folder: pathlib.Path) -> None:
  """Uploads a folder as one commit; a README.md that is there stays.

  Raises:
    UserError: as of `open_repository`.
  """
  api = _api(name)
  with _told(name, f"; {folder} is whole: hf upload {name} {folder}"):
    kept = ["README.md"] if api.file_exists(name, "README.md") else []
    api.upload_folder(
      repo_id=name,
      folder_path=folder,
      ignore_patterns=kept,
      commit_message="Export of big_siglip",
    )


def _api(name: str) -> Any:
  if not _NAME.fullmatch(name):
    raise UserError(f"--push={name}: must be ORG/NAME")
  import huggingface_hub  # Imported late: it takes a second.

  if not huggingface_hub.get_token():
    raise UserError(
      f"--push={name}: no login: run 'hf auth login', or set HF_TOKEN"
    )
  return huggingface_hub.HfApi()


@contextlib.contextmanager
def _told(name: str, then: str = "") -> Iterator[None]:
  try:
    yield
  except Exception as error:  # The network, the hub and the disk all have many.
    reason = " ".join(str(error).split())[:300]
    raise UserError(
      f"--push={name}: {type(error).__name__}: {reason}{then}"
    ) from error
