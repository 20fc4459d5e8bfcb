"""Embeddings of millions of images or texts: made, kept in a folder, searched.

`inputs` lists what is embedded, `pipeline` embeds it, `folder` writes and reads
the result, `search` and `index` find the nearest rows, exactly and nearly so.
"""

from big_siglip.data.embedding_folder import Description, Reader
from big_siglip.embeddings.description import describe_model
from big_siglip.embeddings.folder import Writer
from big_siglip.embeddings.inputs import (
  AnyInputs,
  Inputs,
  read_images,
  read_texts,
)

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
