"""Drawn shapes with captions that say exactly what is to be seen.

`scenes` has squares, `scenes_wide` images of several shapes.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

import tensorflow_datasets as tfds

from big_siglip.datasets import drawing, scenes_draw, scenes_wide

NUM_TEST = 1_000
NUM_TRAIN = 50_000  # Unless asked for otherwise.


@dataclasses.dataclass
class ScenesConfig(tfds.core.BuilderConfig):
  """How many training examples; the test split has always 1,000."""

  num_train: int = NUM_TRAIN


class Scenes(tfds.core.GeneratorBasedBuilder):
  """Scenes of one or two groups of coloured shapes, 64x64 pixels.

  Some 64,000 meanings exist. A tenth of them, chosen by hash, is kept for the
  test split, so no test caption is ever trained on, however it is phrased, and
  every test caption differs from all others in meaning. Example i is the same
  whatever the number of examples.
  """

  VERSION = tfds.core.Version("1.2.0")
  RELEASE_NOTES = {
    "1.2.0": "Both phrasings of a caption; all else is as it was.",
    "1.1.0": "Masks and boxes; images and captions are as they were.",
    "1.0.0": "First release.",
  }
  # Nothing is downloaded. To look for checksums, TFDS would import
  # importlib_resources, which it does not install.
  url_infos = None
  _draws: Any = scenes_draw
  _size: tuple[int | None, int | None] = (scenes_draw.SIDE, scenes_draw.SIDE)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Drawn shapes with captions.",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(
            shape=(*self._size, 3),
            encoding_format="png",
          ),
          "captions": tfds.features.Sequence(tfds.features.Text()),
          # The other way to say the same, too: for what judges captions.
          "phrasings": tfds.features.Sequence(tfds.features.Text()),
          "name": tfds.features.Text(),
          "mask": tfds.features.Image(
            shape=(*self._size, 1),
            encoding_format="png",
          ),
          "boxes": tfds.features.Sequence(tfds.features.BBoxFeature()),
          "box_texts": tfds.features.Sequence(tfds.features.Text()),
        }
      ),
      disable_shuffling=True,  # Record i is example i.
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    count = self.builder_config.num_train
    train = drawing.train_examples(self._draws, count)
    test = self._draws.test_examples(NUM_TEST)
    return {
      "train": self._generate_examples("train", drawing.shown(train, count)),
      "test": self._generate_examples("test", drawing.shown(test, NUM_TEST)),
    }

  def _generate_examples(
    self, split: str, examples: Iterator[scenes_draw.Painted]
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for key, scene in enumerate(examples):
      yield (
        key,
        {
          "image": scene.image,
          "captions": [scene.caption],
          "phrasings": scene.phrasings,
          "name": f"{self.name}/{split}/{key:06d}",
          "mask": scene.mask,
          "boxes": [tfds.features.BBox(*box) for box in scene.boxes],
          "box_texts": scene.box_texts,
        },
      )


class ScenesWide(Scenes):
  """Scenes four fifths of which are seven times as long as they are thick.

  See `scenes_wide`. Test and training captions are as strange to each other as
  those of `Scenes`.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}
  _draws = scenes_wide
  _size = (None, None)
