"""What a model that was trained with a decoder writes, and how likely.

Shape letters: I images, T texts.
"""

from collections.abc import Iterable, Sequence
import functools
from typing import Any, cast, TYPE_CHECKING

import numpy as np

from big_siglip.errors import UserError
from big_siglip.trained import inputs
from big_siglip.trained.writing import Box, Captioner, Search, Start

if TYPE_CHECKING:
  from big_siglip.trained.inference import Model


class Captioning:
  """The part of `inference.Model` that writes.

  A model has a decoder if it is a run with a term of kind "captioning"; its
  parameters are read when first asked for.
  """

  if TYPE_CHECKING:
    batch_size: int

    def prepare_image(self, image: inputs.ImageLike) -> np.ndarray: ...  # noqa: D102

  def caption(
    self,
    images: Iterable[inputs.ImageLike],
    *,
    prefix: str = "",
    beams: int = 1,
    max_length: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
  ) -> list[str]:
    """Returns a caption of each image.

    Example:
      model.caption(["cat.jpg"])  # ["a cat on a mat"]
      model.caption(["cat.jpg"], prefix="a black", beams=4)

    Args:
      images: as for `Model.embed_images`.
      prefix: how captions begin; it is part of them.
      beams: sequences that are kept in the search; 1: the likeliest word each
        time.
      max_length: tokens to write at most; None: as in training.
      batch_size: images on the devices at once; None: the model's.
      progress: whether to say how far it is, on standard error.

    Raises:
      UserError: an image cannot be read, and which; or there is no decoder.
    """
    start = self._asking("caption", text=prefix or None)
    search = Search(beams, max_length)
    found = self._written(images, [start], search, batch_size, progress)
    return [own[0].text for own in found]

  def find_boxes(
    self,
    images: Iterable[inputs.ImageLike],
    phrases: Sequence[str],
    *,
    beams: int = 1,
    batch_size: int | None = None,
    progress: bool = False,
  ) -> list[list[Box | None]]:
    """Returns where each phrase is seen in each image.

    Example:
      ((box,),) = model.find_boxes(["cat.jpg"], ["the cat's left ear"])

    Args:
      images: as for `Model.embed_images`.
      phrases: what to look for.
      beams: as for `caption`.
      batch_size: as well.
      progress: as well.

    Returns:
      For each image a box of each phrase: (y1, x1, y2, x2) in shares of the
      image, from the top left; None where the decoder wrote none.

    Raises:
      UserError: as `caption`; or it was not trained with boxes.
    """
    inputs.check_list(phrases, "phrases")
    starts = [self._asking("aref", text=phrase) for phrase in phrases]
    found = self._written(images, starts, Search(beams), batch_size, progress)
    return [[sentence.box for sentence in own] for own in found]

  def caption_boxes(
    self,
    images: Iterable[inputs.ImageLike],
    boxes: Sequence[Box],
    *,
    beams: int = 1,
    batch_size: int | None = None,
    progress: bool = False,
  ) -> list[list[str]]:
    """Returns for each image what is seen in each box.

    Example:
      model.caption_boxes(["cat.jpg"], [(0.1, 0.2, 0.5, 0.6)])

    Args:
      images: as for `Model.embed_images`.
      boxes: (y1, x1, y2, x2) in shares of the image, from the top left.
      beams: as for `caption`.
      batch_size: as well.
      progress: as well.

    Raises:
      UserError: as `find_boxes`; or a box is none.
    """
    starts = []
    for number, box in enumerate(boxes):
      _check_box(f"boxes[{number}]", box)
      starts.append(self._asking("gcap", box=box))
    found = self._written(images, starts, Search(beams), batch_size, progress)
    return [[sentence.text for sentence in own] for own in found]

  def log_likelihoods(
    self,
    images: Iterable[inputs.ImageLike],
    texts: Sequence[str],
    *,
    batch_size: int | None = None,
    progress: bool = False,
  ) -> np.ndarray:
    """Returns IT float32: the logarithm of the probability of each caption.

    All tokens of a text are counted, with the end: longer ones are less likely.
    An image is looked at once, whatever the number of texts.

    Example:
      model.log_likelihoods(["cat.jpg"], ["a cat", "a dog"]).argmax(axis=1)

    Args:
      images: as for `Model.embed_images`.
      texts: captions, or the names of classes in sentences.
      batch_size: as for `caption`.
      progress: as well.

    Raises:
      UserError: as `caption`.
    """
    inputs.check_list(texts, "texts")
    writer = self.captioner
    writer.check_task("caption")
    rows = [
      writer.score(context, texts)[:count]
      for context, count in self._contexts(images, batch_size, progress)
    ]
    return np.concatenate(rows) if rows else np.zeros((0, len(texts)))

  @functools.cached_property
  def captioner(self) -> Captioner:
    """The decoder.

    Raises:
      UserError: there is none.
    """
    return Captioner(cast("Model", self))

  def _asking(self, task: str, **given: Any) -> Start:
    self.captioner.check_task(task)
    return self.captioner.start(task, **given)

  def _written(self, images, starts, search, batch_size, progress):
    search.check()
    writer, found = self.captioner, []
    for context, count in self._contexts(images, batch_size, progress):
      rows = [writer.write(context, start, search) for start in starts]
      found += [[row[i] for row in rows] for i in range(count)]
    return found

  def _contexts(self, images, batch_size, shown: bool):
    count = inputs.check_list(images, "images")
    size = self.batch_size
    if batch_size is not None:
      size = inputs.check_batch_size(batch_size)
    rows = inputs.each(images, "images", self.prepare_image)
    with inputs.showing(shown, count, "images") as add:
      for context, own in self.captioner.batches(rows, size):
        yield context, own
        add(own)


def _check_box(name: str, box: Any) -> None:
  """Raises a UserError where a box is none."""
  try:
    y1, x1, y2, x2 = map(float, box)
    good = 0 <= y1 < y2 <= 1 and 0 <= x1 < x2 <= 1
  except (TypeError, ValueError):
    good = False
  if not good:
    raise UserError(
      f"{name}={box!r}: must be (y1, x1, y2, x2) in shares of the image, with "
      "0 <= y1 < y2 <= 1, and x alike"
    )
