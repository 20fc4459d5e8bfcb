"""What is found in a pool: texts of images, images of texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from big_siglip.report import thumbnails
from big_siglip.report.pool import Answers, Pool
from big_siglip.report.thumbnails import Picture

_TOP = 5


def picture(pool: Pool, image: int) -> Picture:
  """Returns an image of the pool for the page."""
  captions = pool.captions(image)
  alt = captions[0] if captions else "an image without a caption"
  return thumbnails.picture(pool.thumbnails[image], alt)


def by_image(
  pool: Pool, answers: Mapping[int, Answers], images: Sequence[int]
) -> list[dict[str, Any]]:
  """Returns for each image the likeliest texts by each run."""
  return [
    {
      "picture": picture(pool, image),
      "captions": pool.captions(image),
      "answers": [
        {
          "run": number,
          "rank": _rank(answer.texts[image], pool.right[image]),
          "results": [
            {
              "text": pool.texts[text],
              "probability": float(answer.texts[image, text]),
              "right": bool(pool.right[image, text]),
            }
            for text in _top(answer.texts[image])
          ],
        }
        for number, answer in answers.items()
      ],
    }
    for image in images
  ]


def by_text(
  pool: Pool, answers: Mapping[int, Answers], texts: Sequence[int]
) -> list[dict[str, Any]]:
  """Returns for each text the likeliest images by each run."""
  return [
    {
      "text": pool.texts[text],
      "answers": [
        {
          "run": number,
          "rank": _rank(answer.texts[:, text], pool.right[:, text]),
          "results": [
            {
              "picture": picture(pool, image),
              "probability": float(answer.texts[image, text]),
              "right": bool(pool.right[image, text]),
            }
            for image in _top(answer.texts[:, text])
          ],
        }
        for number, answer in answers.items()
      ],
    }
    for text in texts
  ]


def _top(scores: np.ndarray) -> np.ndarray:
  return np.argsort(-scores, kind="stable")[:_TOP]


def _rank(scores: np.ndarray, right: np.ndarray) -> int:
  """Returns the place of the best right answer, 1 for the first."""
  order = np.argsort(-scores, kind="stable")
  return int(right[order].argmax()) + 1
