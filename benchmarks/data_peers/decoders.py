"""Decodes and resizes photos with Pillow and, where it is there, PyTurboJPEG.

python decoders.py FOLDER [--save=FILE.npz]

Prints JSON: the version of Pillow, and by name the milliseconds of CPU of each
(decode, resize). Runs in any environment with numpy and a Pillow: Pillow-SIMD
calls itself PIL too.
"""

import argparse
from collections.abc import Callable, Sequence
import functools
import io
import json
import pathlib
import statistics
import time

import numpy as np
import PIL
from PIL import Image

SIZE = 224  # Pixels.
_SECONDS = 0.25  # For one step of one way, in a round.

Decode = Callable[[bytes], np.ndarray]  # To uint8 [H, W, 3].
Resize = Callable[[np.ndarray], np.ndarray]  # To uint8 [SIZE, SIZE, 3].


def pillow(data: bytes) -> np.ndarray:
  """Decodes in full."""
  return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def pillow_half(data: bytes) -> np.ndarray:
  """Decodes at half the sides."""
  image = Image.open(io.BytesIO(data))
  image.draft("RGB", (image.width // 2, image.height // 2))
  return np.asarray(image.convert("RGB"))


def bilinear(image: np.ndarray) -> np.ndarray:
  """Resizes with Pillow's antialiased filter."""
  size = (SIZE, SIZE)
  return np.asarray(Image.fromarray(image).resize(size, Image.BILINEAR))


def ways() -> dict[str, tuple[Decode, Resize]]:
  """Returns what this environment has."""
  found = {
    "Pillow": (pillow, bilinear),
    "Pillow draft, half": (pillow_half, bilinear),
  }
  try:
    import turbojpeg

    jpeg = turbojpeg.TurboJPEG()
  except (ImportError, RuntimeError):  # The second: without its library.
    return found

  def decode(data: bytes, **how) -> np.ndarray:
    return jpeg.decode(data, pixel_format=turbojpeg.TJPF_RGB, **how)

  half = functools.partial(decode, scaling_factor=(1, 2))
  return found | {
    "PyTurboJPEG": (decode, bilinear),
    "PyTurboJPEG, half": (half, bilinear),
  }


def read(folder: pathlib.Path) -> list[bytes]:
  """Returns the files of a folder, in order."""
  return [file.read_bytes() for file in sorted(folder.iterdir())]


def measure(
  ways: dict[str, tuple[Decode, Resize]], files: Sequence[bytes], rounds: int
) -> dict[str, tuple[float, float]]:
  """Returns medians of milliseconds of CPU an image: decoding, resizing."""
  taken = {name: [] for name in ways}
  for _ in range(rounds):
    for name, (decode, resize) in ways.items():
      images = [decode(data) for data in files]
      taken[name].append((_time(decode, files), _time(resize, images)))
  return {
    name: tuple(map(statistics.median, zip(*values, strict=True)))
    for name, values in taken.items()
  }


def _time(function: Callable, arguments: Sequence) -> float:
  start, count = time.thread_time(), 0
  while time.thread_time() - start < _SECONDS:
    for argument in arguments:
      function(argument)
    count += len(arguments)
  return 1e3 * (time.thread_time() - start) / count


def main() -> None:
  """Measures, and keeps the pixels for whoever compares them."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--save", type=pathlib.Path)
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  files, found = read(args.folder), ways()
  if args.save:
    pixels = {
      name: np.stack([resize(decode(data)) for data in files])
      for name, (decode, resize) in found.items()
    }
    np.savez(args.save, **pixels)
  times = measure(found, files, args.rounds)
  print(json.dumps({"pillow": PIL.__version__, "times": times}))


if __name__ == "__main__":
  main()
