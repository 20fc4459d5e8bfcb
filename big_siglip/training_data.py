"""Opens data sets as a config asks for them."""

from ml_collections import ConfigDict

from big_siglip.data.sources import open_source, Options, Source
from big_siglip.data.sources.embedded import check_images, EmbeddedSource
from big_siglip.models.sizes import resolve_image


def source(
  config: ConfigDict,
  name: str,
  split: str,
  path: str | None,
  options: Options | None = None,
) -> Source:
  """Returns the examples of `open_source`.

  Args:
    config: the config.
    name: of the data set.
    split: of it.
    path: where it lies.
    options: what to take of it. None: for an evaluation, which has the fields
      of `config.data` if its format is the same one, and all their examples.

  Raises:
    UserError: they cannot be opened, or are embeddings that do not fit the
      image tower of `config`.
  """
  if options is None:
    same = name == config.data.name
    options = Options.of(config.data).for_evaluation() if same else Options()
  opened = open_source(name, split, path, options)
  if isinstance(opened, EmbeddedSource):
    check_images(
      opened.description,
      path,
      width=config.model.embed_dim or resolve_image(config.model.image).width,
      image_size=config.model.image.image_size,
      resize=config.data.resize,
    )
  return opened
