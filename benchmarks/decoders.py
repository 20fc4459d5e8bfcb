"""What each decoder of JPEG costs, and how far its pixels lie from Pillow's.

python -m benchmarks.decoders [--photos=FOLDER] [--others=PYTHON ...] [--json]

Photos of 640x480 (JPEG, 4:2:0, quality 90) are decoded and resized to 224x224
in every way that comes into question, in turn and in one run, by one thread.
Without --photos they are made up. --others are the interpreters of environments
with another Pillow (Pillow-SIMD) or with PyTurboJPEG.
"""

import argparse
import io
import json
import pathlib
import subprocess
import tempfile

import cv2
import numpy as np
from PIL import Image
import simplejpeg

from benchmarks.data import photo
from benchmarks.data_peers import decoders
from benchmarks.data_peers.decoders import SIZE
from big_siglip.data import fast_images

ROOT = pathlib.Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 640, 480
REFERENCE = "Pillow"  # Decoded in full, resized with its bilinear filter.


def simple_half(data: bytes) -> np.ndarray:
  """Decodes at half the sides by simplejpeg."""
  half = dict(min_height=HEIGHT // 2, min_width=WIDTH // 2)
  return simplejpeg.decode_jpeg(data, **half)


def opencv(data: bytes, flag: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray:
  """Decodes in full by OpenCV."""
  return cv2.imdecode(np.frombuffer(data, np.uint8), flag)


def opencv_half(data: bytes) -> np.ndarray:
  """Decodes at half the sides by OpenCV, which knows this as BGR alone."""
  half = opencv(data, cv2.IMREAD_REDUCED_COLOR_2)
  return cv2.cvtColor(half, cv2.COLOR_BGR2RGB)


def blurred(image: np.ndarray) -> np.ndarray:
  """Resizes as decoder="fast" does."""
  return fast_images.resize(image, SIZE)


def by(interpolation: int) -> decoders.Resize:
  """Returns how OpenCV resizes."""
  return lambda image: cv2.resize(
    image, (SIZE, SIZE), interpolation=interpolation
  )


def ways() -> dict[str, tuple[decoders.Decode, decoders.Resize]]:
  """Returns all that this environment has; a name says decoder + resize."""
  simple, bilinear = simplejpeg.decode_jpeg, decoders.bilinear
  return decoders.ways() | {
    "simplejpeg": (simple, bilinear),
    "simplejpeg + OpenCV blur and linear": (simple, blurred),
    "simplejpeg, half": (simple_half, bilinear),
    "simplejpeg, half + OpenCV area": (simple_half, by(cv2.INTER_AREA)),
    "simplejpeg, half + OpenCV blur and linear": (simple_half, blurred),
    "simplejpeg, half + OpenCV linear": (simple_half, by(cv2.INTER_LINEAR)),
    "OpenCV": (opencv, bilinear),
    "OpenCV, half + OpenCV blur and linear": (opencv_half, blurred),
  }


def write_photos(folder: pathlib.Path, photos: str | None, count: int) -> None:
  """Writes the files to measure with.

  Args:
    folder: for them.
    photos: a folder of images; None: made up.
    count: how many.
  """
  rng = np.random.default_rng(0)
  kinds = (".jpg", ".jpeg", ".png")
  found = sorted(pathlib.Path(photos).expanduser().iterdir()) if photos else []
  found = [f for f in found if f.suffix.lower() in kinds][:count]
  if photos and not found:
    raise SystemExit(f"--photos={photos}: no jpg or png there")
  for i in range(len(found) or count):
    data = found[i].read_bytes() if found else photo(rng)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image = image.resize((WIDTH, HEIGHT), Image.LANCZOS)
    image.save(folder / f"{i:03d}.jpg", quality=90, subsampling="4:2:0")


def other(python: str, folder: pathlib.Path, rounds: int):
  """Returns times and pixels of another environment, by name."""
  program = ROOT / "benchmarks" / "data_peers" / "decoders.py"
  with tempfile.TemporaryDirectory() as name:
    save = pathlib.Path(name) / "pixels.npz"
    command = [python, program, folder, f"--save={save}", f"--rounds={rounds}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    said = json.loads(done.stdout)
    where = f"(Pillow {said['pillow']})"
    with np.load(save) as kept:
      pixels = {f"{name} {where}": kept[name] for name in kept.files}
  times = {f"{name} {where}": taken for name, taken in said["times"].items()}
  return times, pixels


def differences(pixels: np.ndarray, exact: np.ndarray) -> dict[str, float]:
  """Returns how far two sets of images lie apart, in grey levels of 255."""
  apart = np.abs(pixels.astype(np.int16) - exact)
  return {
    "mean": float(apart.mean()),
    "99 %": float(np.percentile(apart, 99)),
    "largest": float(apart.max()),
  }


def measure(folder: pathlib.Path, others: list[str], rounds: int) -> dict:
  """Returns what each way costs and changes, and its ratio to Pillow's time."""
  files, here = decoders.read(folder), ways()
  times = decoders.measure(here, files, rounds)
  pixels = {
    name: np.stack([resize(decode(data)) for data in files])
    for name, (decode, resize) in here.items()
  }
  for python in others:
    more = other(python, folder, rounds)
    times, pixels = times | more[0], pixels | more[1]
  whole = sum(times[REFERENCE])
  return {
    name: {
      "decode_ms": decode,
      "resize_ms": resize,
      "ratio": (decode + resize) / whole,
      **differences(pixels[name], pixels[REFERENCE]),
    }
    for name, (decode, resize) in times.items()
  }


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--photos", help="a folder of images")
  parser.add_argument("--others", nargs="*", default=[], metavar="PYTHON")
  parser.add_argument("--count", type=int, default=40)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--json", action="store_true")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    write_photos(folder, args.photos, args.count)
    found = measure(folder, args.others, args.rounds)
  if args.json:
    print(json.dumps(found))
    return
  print("decode, resize: CPU ms; of Pillow's sum; grey levels from its pixels")
  for name, row in found.items():
    print(
      f"{name:44} {row['decode_ms']:5.2f} {row['resize_ms']:5.2f}"
      f" {row['ratio']:5.2f}   mean {row['mean']:.1f}, 99 %"
      f" {row['99 %']:.0f}, largest {row['largest']:.0f}"
    )


if __name__ == "__main__":
  main()
