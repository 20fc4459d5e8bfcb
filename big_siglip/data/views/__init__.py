"""Views: from examples to the arrays of a batch, a file each."""

from big_siglip.data.views.crops import Crops
from big_siglip.data.views.embeddings import Embeddings
from big_siglip.data.views.masks import Masks
from big_siglip.data.views.pixels import Pixels
from big_siglip.data.views.targets import CutTargets, Targets
from big_siglip.data.views.tokens import Tokens
from big_siglip.data.views.view import fill, ImageView, Sample, Streams, View

__all__ = [
  "Crops",
  "CutTargets",
  "Embeddings",
  "fill",
  "ImageView",
  "Masks",
  "Pixels",
  "Sample",
  "Streams",
  "Targets",
  "Tokens",
  "View",
]
