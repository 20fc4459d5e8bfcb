"""Embeddings of millions of images or texts: made, kept in a folder, searched.

`reading` lists what is embedded (`inputs`), `pipeline` embeds it, `folder`
writes the result, `update` finds what has changed since; `index` finds the
nearest rows.
"""

from big_siglip.data.embedding_folder import Description, Reader
from big_siglip.embeddings.description import describe_model
from big_siglip.embeddings.folder import Writer
from big_siglip.embeddings.given import AnyInputs
from big_siglip.embeddings.inputs import Inputs
from big_siglip.embeddings.reading import read_images, read_texts

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
