"""Patches of one image found in another; numpy alone.

Shape letters: h x w the grid of patches, C numbers of a patch, M matches.
"""

from typing import NamedTuple

import numpy as np

from big_siglip.evaluators.grids import unit


class Matches(NamedTuple):
  """Patches that are each other's nearest, the most alike first.

  Attributes:
    first: M2, (row, column) in the first image's grid.
    second: M2, the same in the second one's.
    cosine: M.
  """

  first: np.ndarray
  second: np.ndarray
  cosine: np.ndarray


def mutual(first: np.ndarray, second: np.ndarray, most: int) -> Matches:
  """Returns patches that are nearest to each other, both ways.

  What has no counterpart is nearest to something too, but seldom mutually.

  Args:
    first: hwC float32, patches of an image.
    second: hwC, those of another; its grid may be of another size.
    most: how many to return, at most.
  """
  a, b = (unit(x.reshape(-1, x.shape[-1])) for x in (first, second))
  cosines = a @ b.T
  there, back = cosines.argmax(axis=1), cosines.argmax(axis=0)
  own = np.flatnonzero(back[there] == np.arange(len(a)))
  own = own[np.argsort(-cosines[own, there[own]], kind="stable")][:most]
  return Matches(
    np.stack(np.divmod(own, first.shape[1]), axis=-1),
    np.stack(np.divmod(there[own], second.shape[1]), axis=-1),
    cosines[own, there[own]],
  )
