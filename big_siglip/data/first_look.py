"""What was understood of a data set, in a few lines."""

from big_siglip.data.mixture import Mixture, Subset
from big_siglip.data.sources import Source
from big_siglip.data.sources.record_source import RecordSource
from big_siglip.errors import BadExample

_ROWS = 3
_TEXTS = 3  # Of an example.
_LONGEST = 70  # Letters of a text, or of a name's end.


def first_look(source: Source, name: str = "") -> list[str]:
  """Returns how many examples there are, of which fields, and the first three.

  Args:
    source: what is trained on; reads three examples of it, or of each part.
    name: of the part of a `Mixture`.
  """
  if isinstance(source, Mixture):
    parts = [source.part(first) for first in source.starts]
    return [line for name, part, _ in parts for line in first_look(part, name)]
  whole = source.source if isinstance(source, Subset) else source
  of = f" of {name}" if name else ""
  about = f"data{of}: {len(source):,} examples"
  if isinstance(whole, RecordSource):
    about = f"data{of}: {whole.about()}"
    if whole is not source:
      about += f"; {len(source):,} examples without duplicates"
  return [about, *(_row(source, i) for i in range(min(_ROWS, len(source))))]


def _row(source: Source, index: int) -> str:
  try:
    example = source[index]
  except BadExample as error:
    return f"  {_end(error.name or str(index))}: is skipped: {error}"
  texts = [_plain(text)[:_LONGEST] for text in example.texts]
  more = f" (and {len(texts) - _TEXTS} more)" if len(texts) > _TEXTS else ""
  label = ""
  if example.label is not None:
    names = source.class_names
    label = f", label {names[example.label] if names else example.label}"
  said = " | ".join(texts[:_TEXTS])
  return f"  {_end(example.name)}: {said}{more}{label}"


def _plain(text: str) -> str:
  """Returns a text in one line that any terminal can show."""
  text = " ".join(text.split()).encode("utf-8", "backslashreplace").decode()
  return "".join(c if c.isprintable() else "?" for c in text)


def _end(name: str) -> str:
  name = _plain(name)
  return name if len(name) <= _LONGEST else f"...{name[-_LONGEST:]}"
