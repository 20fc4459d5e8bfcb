"""Which files are images, by their names: one table for the whole project.

All of it is decoded by Pillow; HEIC by pillow_heif, where that is installed.
"""

import contextlib

from PIL import Image

from big_siglip import extras

# By the last part of the name, in small letters, without its dot.
EXTENSIONS = (
  "jpg",
  "jpeg",
  "png",
  "webp",
  "gif",
  "bmp",
  "tif",
  "tiff",
  "jpe",
  "jfif",
  "jpg_large",  # As Twitter names them.
  "png_large",
  "avif",
  "heic",
  "heif",
  "jp2",
  "j2k",
  "jpx",
  "mpo",
  "ppm",
  "pgm",
  "pbm",
  "pnm",
  "dib",
  "tga",
  "ico",
)
SUFFIXES = tuple(f".{extension}" for extension in EXTENSIONS)

# How the brands of HEIF begin that hold HEVC, after four bytes of a length.
_HEIF = tuple(
  b"ftyp" + brand
  for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
)
_SVG = (b"<svg", b"<?xml")
# How what Pillow reads begins; RIFF is WebP's.
_SIGNS = (
  b"\xff\xd8\xff",
  b"\x89PNG",
  b"GIF8",
  b"RIFF",
  b"BM",
  b"II*\0",
  b"MM\0*",
  b"\0\0\0\x0cjP  ",
  b"\xff\x4f\xff\x51",
)


def is_image(name: str) -> bool:
  """Whether a file is called as images are."""
  return name.lower().endswith(SUFFIXES)


def looks_like_image(data: bytes) -> bool:
  """Whether bytes begin as images of the usual formats do."""
  return data.startswith(_SIGNS) or data[4:8] == b"ftyp"


def why_unknown(data: bytes) -> str:
  """Returns why Pillow may not know the format of some bytes."""
  if data[4:12] in _HEIF and "HEIF" in Image.OPEN:
    return "is HEIC, and damaged"
  if data[4:12] in _HEIF:
    return f"is HEIC, which needs pillow-heif ({extras.how('heic')})"
  if data[4:8] == b"ftyp" and data[8:10] == b"av":
    return "is AVIF, which needs a Pillow that was built with libavif"
  if data.lstrip()[:5].lower().startswith(_SVG):
    return "is SVG or XML: a drawing without pixels"
  return "is no image of a known format"


def register_decoders() -> None:
  """Lets Pillow read HEIC where pillow_heif is installed."""
  with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()
