"""Position embeddings and patch kernels at another resolution; numpy alone.

Shape letters: L positions, D width, p pixels along a patch's side.
"""

import numpy as np

from big_siglip.errors import UserError

# What can take another shape, and along how many of its first dimensions.
_FREE = {
  "image/position_embedding": 1,
  "image/patch_embedding/kernel": 2,
  "text/position_embedding": 1,
  "text/token_embedding/embedding": 1,
}


def may_resample(name: str, old: tuple[int, ...], new: tuple[int, ...]) -> bool:
  """Returns whether a parameter can take a new shape, by its path."""
  free = _FREE.get(name)
  return free is not None and old[free:] == new[free:]


def resample_positions(
  positions: np.ndarray, side: int, method: str, class_token: bool = False
) -> np.ndarray:
  """Returns the learned grid of an image tower at side x side patches.

  Two conventions are about, and they differ: "big_vision" keeps the corners
  where they are and is linear between (scipy.ndimage.zoom, order 1, as its
  models/vit.py does, with which the published models of higher resolution were
  made); "huggingface" stretches the area of the grid and is bicubic
  (interpolate_pos_encoding of transformers: torch's bicubic with
  align_corners=False, Keys' kernel with a = -0.75, no antialiasing).

  Args:
    positions: LD of a square grid, row by row.
    side: of the new grid.
    method: one of `schema.words.POSITIONS`.
    class_token: whether the first row is that of a class token, which stays as
      it is.

  Raises:
    UserError: L is no square.
  """
  if class_token:
    grid = resample_positions(positions[1:], side, method)
    return np.concatenate([positions[:1], grid])
  old = round(len(positions) ** 0.5)
  if old * old != len(positions):
    raise UserError(
      f"config.init: a position embedding of {len(positions)} rows is no "
      "square grid"
    )
  matrix = _aligned if method == "big_vision" else _bicubic
  weights = matrix(old, side)
  grid = positions.reshape(old, old, -1).astype(np.float64)
  grid = np.einsum("ai,bj,ijd->abd", weights, weights, grid)
  return grid.reshape(side * side, -1).astype(positions.dtype)


def stretch_positions(positions: np.ndarray, length: int) -> np.ndarray:
  """Returns the learned positions of a text tower for another length, LD.

  The ends stay where they are, since SigLIP pools the last position; linear
  between.
  """
  weights = _aligned(len(positions), length)
  return (weights @ positions.astype(np.float64)).astype(positions.dtype)


def resample_patches(kernel: np.ndarray, size: int) -> np.ndarray:
  """Returns the patch embedding's kernel for patches of size x size pixels.

  FlexiViT's pseudo-inverse resize (arXiv:2212.08013, section 3.4): the kernel
  whose products with resized patches are nearest to the old ones with the
  patches themselves. Patches are resized as the paper's code does, bilinear
  with antialiasing where they shrink.

  Args:
    kernel: pp3D.
    size: the new p.
  """
  old = kernel.shape[0]
  resize = _bilinear(old, size)  # [size, old], along one axis.
  matrix = np.kron(resize, resize)  # All pixels of a patch.
  inverse = np.linalg.pinv(matrix.T)
  flat = kernel.reshape(old * old, -1).astype(np.float64)
  return (
    (inverse @ flat).reshape(size, size, *kernel.shape[2:]).astype(kernel.dtype)
  )


def _aligned(old: int, new: int) -> np.ndarray:
  """Returns [new, old]: linear interpolation that keeps the ends."""
  at = np.linspace(0, old - 1, new)
  return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(old)))


def _bicubic(old: int, new: int) -> np.ndarray:
  """Returns [new, old]: Keys' cubic kernel, edges repeated."""
  at = (np.arange(new) + 0.5) * old / new - 0.5
  weights = np.zeros((new, old))
  for row, center in enumerate(at):
    for tap in range(int(np.floor(center)) - 1, int(np.floor(center)) + 3):
      x = abs(center - tap)
      weights[row, np.clip(tap, 0, old - 1)] += _keys(x)
  return weights


def _keys(x: float, a: float = -0.75) -> float:
  if x <= 1:
    return (a + 2) * x**3 - (a + 3) * x**2 + 1
  return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def _bilinear(old: int, new: int) -> np.ndarray:
  """Returns [new, old]: a triangle filter, as wide as a new pixel's area."""
  scale = max(old / new, 1.0)
  at = (np.arange(new) + 0.5) * old / new - 0.5
  distance = np.abs(at[:, None] - np.arange(old)) / scale
  weights = np.maximum(0, 1 - distance)
  return weights / weights.sum(axis=1, keepdims=True)
