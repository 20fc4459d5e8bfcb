"""Two towers, a learned scale and a learned bias.

Shape letters: B batch, H image height, W width, L tokens, E embedding.
"""

from collections.abc import Mapping
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from ml_collections import ConfigDict, FrozenConfigDict

from big_siglip.models import positions
from big_siglip.models.compute import Compute
from big_siglip.models.text import TextTower
from big_siglip.models.towers import (
  Hidden,
  Image,
  image_of,
  is_embedded,
  Seen,
)
from big_siglip.models.transformer import constrain
from big_siglip.models.vision import ImageTower
from big_siglip.schema import sizes


class SigLIP(nn.Module):
  """SigLIP, arXiv:2303.15343; (BHW3, BL) -> (BE, BE, (), ()).

  Attributes:
    config: `config.model`, a ConfigDict or FrozenConfigDict. Without a section
      `text` there is neither text tower nor scale and bias.
    sharding: of the encoders' activations and of the embeddings, whose first
      dimension is the batch; None: as the compiler likes.
  """

  config: Any
  sharding: NamedSharding | None = None

  def __post_init__(self):
    # Frozen, the module can be hashed. A copy, because FrozenConfigDict
    # compares by what it was made from, which may still change.
    copy = ConfigDict(self.config).copy_and_resolve_references()
    self.config = FrozenConfigDict(copy)
    super().__post_init__()

  def setup(self):
    """Names the parts."""
    config = self.config
    embed_dim = config.embed_dim or sizes.resolve_image(config.image).width
    compute = Compute.of(config, self.sharding)
    self.image = ImageTower(config.image, embed_dim, compute)
    self.logit_scale = self.logit_bias = None
    if not sizes.has_text_tower(config):
      return
    self.text = TextTower(config.text, embed_dim, compute)
    log_scale = nn.initializers.constant(math.log(config.logit_scale_init))
    bias = nn.initializers.constant(config.logit_bias_init)
    self.logit_scale = self.param("logit_scale", log_scale, ())
    self.logit_bias = self.param("logit_bias", bias, ())

  def __call__(
    self, image: Image | None, text: jax.Array | None
  ) -> tuple[jax.Array | None, jax.Array | None, jax.Array, jax.Array]:
    """Embeds images and texts.

    Args:
      image: BHW3, uint8 or float from -1 to 1, or sequences of patches; None
        computes no image tower. BE are embeddings that a locked tower made
        before: they are only brought to length 1, and the model has no image
        tower.
      text: BL int32; None computes no text tower.

    Returns:
      Image and text embeddings, BE float32 of length 1 (None for what was not
      given, or has no pool), the log of the logits' multiplier, and their bias
      (None without a text tower).
    """
    seen = self.see(image, text)
    return seen.image, seen.text, self.logit_scale, self.logit_bias

  def see(
    self,
    image: Image | None,
    text: jax.Array | None,
    image_mask: jax.Array | None = None,
    hidden: Hidden | None = None,
  ) -> Seen:
    """Returns all that the towers make of images and texts.

    Args:
      image: as of `__call__`.
      text: the same.
      image_mask: BL bool, true for real patches; None: all are, or of
        sequences of patches those of the grid.
      hidden: patches that are not shown; None: none are.
    """
    embedded, tokens, pooled = {}, {}, None
    if image_mask is None and isinstance(image, Mapping):
      image_mask = positions.real(image["grid"], image["patches"].shape[1])
    if image is not None and is_embedded(image):
      embedded["image"] = image
    elif image is not None:
      embedded["image"], tokens["image"], pooled = self.image(
        image, image_mask, hidden
      )
    if text is not None:
      embedded["text"], tokens["text"] = self.text(text)
    return Seen(
      image=self._finish(embedded.get("image")),
      text=self._finish(embedded.get("text")),
      image_tokens=tokens.get("image"),
      text_tokens=tokens.get("text"),
      image_mask=image_mask,
      image_pooled=pooled,
    )

  @nn.nowrap
  def look(
    self,
    params: Any,
    batch: Mapping[str, jax.Array],
    hidden: Hidden | None = None,
    keep: bool = False,
  ) -> Seen:
    """Returns what this model with these parameters sees; `towers.Look`."""
    image, mask = image_of(batch), batch.get("image_mask")
    inputs = image, batch.get("text"), mask, hidden
    model = self._keeping() if keep else self
    return model.apply({"params": params}, *inputs, method="see")

  @nn.nowrap
  def _keeping(self) -> "SigLIP":
    """Returns this model, with blocks that keep all their activations."""
    config = ConfigDict(self.config).copy_and_resolve_references()
    parts = [sizes.resolve_image(config.image)]
    if sizes.has_text_tower(config):
      parts.append(sizes.resolve_text(config.text))
    config.keep_blocks = max(part.depth for part in parts)
    return self.clone(config=config)

  def image_features(self, image: Image) -> jax.Array:
    """Returns what the image tower says before it is made a unit vector."""
    return image if is_embedded(image) else self.image(image)[0]

  def _finish(self, x: jax.Array | None) -> jax.Array | None:
    if x is None:
      return None
    x = x.astype(jnp.float32)
    x = x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-8)
    # Left to itself with embeddings split over `tensor`, XLA's partitioner
    # multiplies the wrong rows in a dense loss (seen on a 2 x 2 x 2 mesh).
    return constrain(x, self.sharding)
