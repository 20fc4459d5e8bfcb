"""What a trained model says of patches and pixels, rather than of an image.

Shape letters: I images, h x w the grid of patches, C numbers of a patch, H and
W pixels.
"""

from collections.abc import Iterable, Sequence
import functools
from typing import Any, TYPE_CHECKING

import numpy as np

from big_siglip.errors import UserError
from big_siglip.models.patches import of_texts, Patches
from big_siglip.models.resolution import Resolution, WHOLE
from big_siglip.trained import inputs, patches, segmenting
from big_siglip.trained.inputs import ImageLike

if TYPE_CHECKING:
  from jax.sharding import Mesh
  from ml_collections import ConfigDict

  from big_siglip.data.preprocessing import Preprocess


class Dense:
  """The part of `inference.Model` that looks at patches.

  Attributes: see there.
  """

  if TYPE_CHECKING:
    config: ConfigDict
    params: Any
    mesh: Mesh
    preprocess: Preprocess
    batch_size: int

    @property
    def logit_scale(self) -> float: ...  # noqa: D102

    @property
    def logit_bias(self) -> float: ...  # noqa: D102

  def embed_patches(
    self,
    images: Iterable[ImageLike],
    *,
    kind: str = "last",
    layer: int = -1,
    norm: bool = True,
    size: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
  ) -> Any:
    """Returns IhwC float32: what each patch knows, on the grid of the image.

    Of a model that keeps an image's shape (NaFlex): a list of hwC, whose grids
    are the images' own.

    Example:
      model.embed_patches(["cat.jpg"])  # [1, 14, 14, 768], tokens
      patches = model.embed_patches(["cat.jpg"], kind="text", size=448)
      patches @ model.embed_texts(["a cat's ear"]).T  # cosines [1, 28, 28, 1]

    Args:
      images: as for `Model.embed_images`.
      kind: "last": tokens after the final norm; "text": each patch in the space
        of the texts, of length 1; "value", "share", "attention": see
        `big_siglip.models.patches.Patches`, as `layer` and `norm`.
      layer: whose tokens; -1 the last block's, -2 those of the one before.
      norm: False: without the final norm, as LLaVA takes them.
      size: side in pixels that images are resized to; None: the model's own.
      stride: pixels from a window of the model's own size to the next; None:
        the whole image at once (`big_siglip.models.resolution.Resolution`).
      batch_size: as for `Model.embed_images`.
      progress: as well.

    Raises:
      UserError: one of them cannot be read, and which; or the tower has no such
        patches.
    """
    count = inputs.check_list(images, "images")
    look = self.look(Patches(kind, layer, norm), Resolution(size, stride))
    with inputs.showing(progress, count, "images") as add:
      return patches.embed_patches(look, images, count, batch_size, add)

  def segment(
    self,
    images: Iterable[ImageLike],
    labels: Sequence[str],
    *,
    templates: Sequence[str] = ("{}",),
    kind: str | None = None,
    layer: int = -1,
    pool_mlp: bool = True,
    size: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
  ) -> list[np.ndarray]:
    """Returns how likely each label belongs to each pixel, without training.

    Each patch is asked as an image is, with the model's own scale and bias, so
    that all labels may be unlikely: nothing of them is there. A model without a
    trained bias (`Model.has_trained_bias`) tells which label is likeliest, and
    no probability. What it is worth is measured: docs/dense.md.

    Example:
      labels = ["a cat", "grass"]
      (found,) = model.segment(["cat.jpg"], labels)  # [H, W, 2], as the image
      is_cat = found[..., 0] > 0.5

    Args:
      images: as for `Model.embed_images`.
      labels: what to look for.
      templates: sentences around a label, with "{}"; their mean is asked.
      kind: "text" or "value", see `embed_patches`; None: "text", or "value" of
        a tower with a class token.
      layer: whose tokens.
      pool_mlp: apply the MLP of an attention pool to each patch, too.
      size: side in pixels that images are resized to, see `embed_patches`.
      stride: from window to window.
      batch_size: as for `Model.embed_images`.
      progress: as well.

    Returns:
      float32 [height, width, len(labels)] of each image, in its own size.

    Raises:
      UserError: an image cannot be read, and which; there are no labels, or one
        is empty; or the model has no text tower.
    """
    count = inputs.check_list(images, "images")
    texts = segmenting.label_vectors(self, labels, templates)
    kind = kind or of_texts(self.config.model.image)
    if kind not in segmenting.KINDS:
      allowed = " or ".join(segmenting.KINDS)
      raise UserError(f"kind={kind!r}: must be {allowed}: patches as texts see")
    asked = Patches(kind, layer, pool_mlp=pool_mlp)
    look = self.look(asked, Resolution(size, stride))
    with inputs.showing(progress, count, "images") as add:
      found = segmenting.segment(
        look, images, texts, self.logit_scale, self.logit_bias, batch_size
      )
      return list(segmenting.counted(found, add))

  def look(
    self, asked: Patches, resolution: Resolution = WHOLE
  ) -> patches.Look:
    """Returns what sees patches of images, the same one for equal wishes."""
    if (asked, resolution) not in self._looks:
      self._looks[asked, resolution] = patches.Look(
        self.config.model,
        self.params,
        self.mesh,
        self.preprocess,
        asked,
        resolution,
        self.batch_size,
      )
    return self._looks[asked, resolution]

  @functools.cached_property
  def _looks(self) -> dict[tuple, patches.Look]:
    return {}
