"""`digits`: 1,797 scanned handwritten digits with captions.

The images are scikit-learn's copy of the UCI test set "Optical Recognition of
Handwritten Digits": 8x8 pixels of 17 grey levels, bright ink on black. They
come with scikit-learn, so nothing is downloaded.
"""

from collections.abc import Iterator
import io
from typing import Any

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from big_siglip import extras

CLASS_NAMES = (
  "zero",
  "one",
  "two",
  "three",
  "four",
  "five",
  "six",
  "seven",
  "eight",
  "nine",
)
NUM_TEST = 360


class Digits(tfds.core.GeneratorBasedBuilder):
  """1,437 training and 360 test scans.

  The split is fixed: NumPy's legacy `RandomState(0).permutation(1797)`, whose
  stream never changes, orders the scans; the last 360 are the test split.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}
  # Nothing is downloaded. To look for checksums, TFDS would import
  # importlib_resources, which it does not install.
  url_infos = None

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Scanned handwritten digits with captions.",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
          "captions": tfds.features.Sequence(tfds.features.Text()),
          "label": tfds.features.ClassLabel(names=list(CLASS_NAMES)),
          "name": tfds.features.Text(),
        }
      ),
      disable_shuffling=True,  # Record i is example i.
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    # Slow to import, and needed only this once.
    with extras.needed_by("config.data.name='digits'"):
      from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.RandomState(0).permutation(len(digits.images))
    return {
      "train": self._generate_examples(digits, order[:-NUM_TEST]),
      "test": self._generate_examples(digits, order[-NUM_TEST:]),
    }

  def _generate_examples(
    self, digits: Any, indices: np.ndarray
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for key, index in enumerate(indices):
      label = int(digits.target[index])
      yield (
        key,
        {
          # An array would be encoded by TensorFlow.
          "image": _to_png(digits.images[index]),
          "captions": list(captions(label)),
          "label": label,
          "name": f"digits/{index:04d}",
        },
      )


def captions(label: int) -> tuple[str, ...]:
  """Returns all phrasings that describe a scan of the digit `label`."""
  word = CLASS_NAMES[label]
  return (
    f"a photo of the digit {word}.",
    f"a photo of the digit {label}.",
    f"a handwritten {word}.",
    f"a handwritten {label}.",
    f"the number {word}, written by hand.",
    f"a scan of the number {label}.",
  )


def _to_png(pixels: np.ndarray) -> bytes:
  """Encodes [8, 8] grey levels 0 to 16 as an 8-bit PNG."""
  buffer = io.BytesIO()
  levels = np.round(pixels * (255 / 16)).astype(np.uint8)
  Image.fromarray(levels).save(buffer, "png")
  return buffer.getvalue()
