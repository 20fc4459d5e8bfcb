"""Packages that one tool or option needs, and what brings them: the extras."""

from collections.abc import Iterator
import contextlib

from big_siglip.errors import UserError

# Extras of setup.cfg, by the modules that they bring.
BRINGS = {
  "aiohttp": "http",
  "anyio": "serve",
  "apache_beam": "prepare",
  "cv2": "fast",
  "faiss": "search",
  "gcsfs": "gs",
  "google_crc32c": "tfds",
  "jinja2": "report",
  "lancedb": "search",
  "libtpu": "tpu",
  "markupsafe": "report",
  "matplotlib": "report",
  "onnx": "onnx",
  "pillow_heif": "heic",
  "protego": "prepare",
  "pyarrow": "parquet",
  "pymilvus": "milvus",
  "python_multipart": "serve",
  "s3fs": "s3",
  "sklearn": "demo",
  "starlette": "serve",
  "tensorflow_datasets": "tfds",
  "urllib3": "prepare",
  "uvicorn": "serve",
  "wandb": "wandb",
}
# By the protocol of a path, whose module fsspec imports.
STORES = {"gs": "gs", "gcs": "gs", "s3": "s3", "http": "http", "https": "http"}


@contextlib.contextmanager
def needed_by(what: str, extra: str | None = None) -> Iterator[None]:
  """Tells in one line how to get a package that is imported and not there.

  Args:
    what: needs it: a flag, a field, a command.
    extra: that brings it; None: by `BRINGS`.

  Raises:
    UserError: it is not installed, or cannot be loaded.
  """
  try:
    yield
  except ImportError as error:
    named = _named(error)
    package = (named.name or "").partition(".")[0]
    extra = extra or BRINGS.get(package)
    if not extra or package == "big_siglip":
      raise
    why = "" if isinstance(named, ModuleNotFoundError) else f" ({named})"
    raise UserError(f"{what} needs {package}{why}: {how(extra)}") from error


def _named(error: ImportError) -> ImportError:
  """Returns the error that says what is missing: this one, or its cause.

  fsspec raises one of its own, which does not.
  """
  cause = error.__cause__
  nameless = error.name is None and isinstance(cause, ImportError)
  return cause if nameless else error


def how(extra: str) -> str:
  """Returns the command that installs an extra, in a checkout or without."""
  return f"pip install 'big_siglip[{extra}]'"
