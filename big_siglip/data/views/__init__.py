"""Views: from examples to the arrays of a batch, a file each."""

from big_siglip.data.views.embeddings import Embeddings
from big_siglip.data.views.masks import Masks
from big_siglip.data.views.patches import Patches
from big_siglip.data.views.pixels import Pixels
from big_siglip.data.views.tokens import Tokens
from big_siglip.data.views.view import fill, ImageView, Sample, Streams, View

__all__ = [
  "Embeddings",
  "fill",
  "ImageView",
  "Masks",
  "Patches",
  "Pixels",
  "Sample",
  "Streams",
  "Tokens",
  "View",
]
