"""Embeddings of millions of images or texts: made, kept in a folder, searched.

`reading` lists what is embedded (`inputs`), `pipeline` embeds it, `folder`
writes the result, `update` finds what has changed since; `index` finds the
nearest rows.
"""

from typing import Any, TYPE_CHECKING

from big_siglip import extras
from big_siglip.embeddings.given import AnyInputs
from big_siglip.embeddings.inputs import Inputs
from big_siglip.embeddings.reading import read_images, read_texts

if TYPE_CHECKING:
  from big_siglip.data.embedding_description import (
    Description,
  )
  from big_siglip.data.embedding_folder import (
    Reader,
  )
  from big_siglip.embeddings.description import describe_model
  from big_siglip.embeddings.folder import Writer

__all__ = [
  "AnyInputs",
  "describe_model",
  "Description",
  "Inputs",
  "read_images",
  "read_texts",
  "Reader",
  "Writer",
]


def __getattr__(name: str) -> Any:
  """Loads what reads and writes folders: it needs a library of an extra."""
  with extras.needed_by("a folder of embeddings"):
    match name:
      case "Description":
        from big_siglip.data.embedding_description import Description as found
      case "Reader":
        from big_siglip.data.embedding_folder import Reader as found
      case "describe_model":
        from big_siglip.embeddings.description import describe_model as found
      case "Writer":
        from big_siglip.embeddings.folder import Writer as found
      case _:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return found
