"""What a person waits for the first time: programs that are compiled."""

from collections.abc import Iterator
import contextlib
import dataclasses
import hashlib
import json
import time
from typing import Any

from big_siglip import durations
from big_siglip.trained.inference import Model


@dataclasses.dataclass(frozen=True)
class _Compiling:
  """A program that is compiled now.

  Attributes:
    what: for which it is, in words.
    key: names it in `durations`.
    start: when it began, of `time.monotonic`.
  """

  what: str
  key: str
  start: float


class FirstTimes:
  """Notes which sizes of batches have been seen, and how long the first took.

  One thread uses the model; others may ask for `now` meanwhile.
  """

  def __init__(self, model: Model):
    """Nothing was seen yet."""
    config = json.dumps(
      [model.config.model.to_dict(), model.mesh.size], default=str
    )
    self._model = hashlib.sha256(config.encode()).hexdigest()[:16]
    self._seen: set[tuple[str, int]] = set()
    self._now: _Compiling | None = None

  @property
  def now(self) -> dict[str, Any] | None:
    """What is compiled: "what", "seconds" until now, "last": those last time.

    None where nothing is; "last" is None where nobody knows.
    """
    now = self._now
    if now is None:
      return None
    seconds = time.monotonic() - now.start
    return {
      "what": now.what,
      "seconds": round(seconds, 1),
      "last": durations.last(now.key),
    }

  @contextlib.contextmanager
  def watch(self, kind: str, count: int) -> Iterator[None]:
    """Says that a batch of a new size is compiled, as long as that takes.

    Args:
      kind: "images", "texts" or "maps".
      count: rows of the batch.
    """
    if (kind, count) in self._seen:
      yield
      return
    rows = kind.removesuffix("s") if count == 1 else kind
    key = f"page {self._model} {kind} {count}"
    self._now = _Compiling(f"{count} {rows}", key, time.monotonic())
    try:
      yield
      self._seen.add((kind, count))
      durations.note(key, time.monotonic() - self._now.start)
    finally:
      self._now = None
