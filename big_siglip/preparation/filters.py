"""Which rows, images and captions are kept."""

import dataclasses

from big_siglip.errors import UserError
from big_siglip.preparation.records import Caption, Tally

# The 108 languages of WIT, in Wikipedia's own codes (Srinivasan et al. 2021,
# arXiv:2103.01913; listed in the card of wikimedia/wit_base).
_WIT_LANGUAGES = """
  af an ar arz ast az azb ba bar be be-tarask bg bn br bs ca ce ceb ckb cs
  cv cy da de el en eo es et eu fa fi fil fr fy ga gl hi hr hsb ht hu hy ia id
  io is it iw ja jv ka kk kn ko la lah lb lmo lt lv mg mk ml mn mr ms my nan
  nds ne nl nn no nv oc pa pl pt qu ro ru sco si sk sl sq sr sr-Latn sv sw ta
  te tg th tr tt uk ur uz vec vi vo war xmf yue zh zh-TW"""
WIT_LANGUAGES = tuple(_WIT_LANGUAGES.split())
# What Pillow decodes; WIT also has SVG, which it does not.
MIME_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif")


@dataclasses.dataclass(frozen=True)
class Filters:
  """What must be true of an image and of a caption.

  Attributes:
    languages: codes; empty: any, also unknown ones.
    mime_types: as the image's own bytes say, or the row where it must first be
      fetched; empty: any that is decoded.
    min_size: pixels of the shorter side.
    max_aspect: longer side by shorter side; None: any.
    min_caption: characters.
    max_caption: characters; None: any.
  """

  languages: tuple[str, ...] = ()
  mime_types: tuple[str, ...] = MIME_TYPES
  min_size: int = 1
  max_aspect: float | None = None
  min_caption: int = 1
  max_caption: int | None = None

  def __post_init__(self):
    if self.min_size < 1:
      raise UserError(f"--min_size={self.min_size}: must be at least 1")
    if self.max_aspect is not None and not self.max_aspect >= 1:  # Or nan.
      raise UserError(f"--max_aspect={self.max_aspect}: must be at least 1")
    if self.min_caption < 1:
      raise UserError(f"--min_caption={self.min_caption}: must be at least 1")
    if self.max_caption is not None and self.max_caption < self.min_caption:
      raise UserError(
        f"--max_caption={self.max_caption}: must be at least "
        f"--min_caption={self.min_caption}"
      )
    for mime_type in self.mime_types:
      if not mime_type.startswith("image/"):
        raise UserError(f"--mime_types: {mime_type!r} must start with image/")

  def keep_image(
    self, width: int, height: int, mime_type: str, tally: Tally
  ) -> bool:
    """Says whether an image of so many pixels stays; counts if it does not."""
    reason = ""
    if self.mime_types and mime_type not in self.mime_types:
      reason = "mime type"
    elif min(width, height) < self.min_size:
      reason = "image too small"
    elif self.max_aspect and max(width, height) > self.max_aspect * min(
      width, height
    ):
      reason = "aspect"
    if reason:
      tally.count(f"filtered: {reason}")
    return not reason

  def keep_captions(
    self, captions: list[Caption], tally: Tally
  ) -> list[Caption]:
    """Returns those that stay, each text once a language, spaces trimmed."""
    kept = {}
    for caption in captions:
      text = " ".join(caption.text.split())
      if not text:
        continue  # Most columns of most rows: nothing to count.
      if self.languages and caption.language not in self.languages:
        tally.count("filtered: caption's language")
      elif len(text) < self.min_caption:
        tally.count("filtered: caption too short")
      elif self.max_caption and len(text) > self.max_caption:
        tally.count("filtered: caption too long")
      else:
        caption = dataclasses.replace(caption, text=text)
        kept.setdefault((text, caption.language), caption)
    return list(kept.values())


def check_wit_languages(languages: tuple[str, ...]) -> None:
  """Raises a `UserError` for a language that WIT does not have."""
  for language in languages:
    if language not in WIT_LANGUAGES:
      raise UserError(
        f"--languages: {language!r} must be one of WIT's 108, in Wikipedia's "
        f"codes: {' '.join(WIT_LANGUAGES)}"
      )
