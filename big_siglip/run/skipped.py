"""What a run leaves out: counted by kind, listed, and too much of it stops."""

from collections.abc import Iterable, Mapping
import dataclasses
import json

from absl import logging
from etils import epath
import jax
import numpy as np

from big_siglip.data.faults import COUNTERS, Fault, KINDS
from big_siglip.data.mixture import locate, opening_faults
from big_siglip.data.sources import Source
from big_siglip.errors import RunStopped
from big_siglip.run import processes
from big_siglip.run.workdir import write_whole

LIST = "skipped.jsonl"
# A share of fewer examples says nothing yet.
FEWEST = 1_000


class Skipped:
  """Keeps count of what one run skips, and lists it in DIR/skipped.jsonl.

  The counts come through the devices, so that all processes know the same ones
  and stop at the same step. The names are gathered by process 0 when there are
  new ones. A line holds step, source, index, name, kind and reason; each
  example has one. Lines past the step at which a run goes on are dropped: those
  steps are taken again.
  """

  def __init__(
    self,
    folder: epath.Path,
    source: str,
    data: Source,
    *,
    max_share: float,
    start_step: int,
    counts: Mapping[str, int],
  ):
    """Reads the list of an earlier start.

    Args:
      folder: the run's.
      source: what the lines call the data set.
      data: the examples; those of a `Mixture` are told by its sources' names.
      max_share: of all examples drawn, how many may be skipped.
      start_step: where the run goes on.
      counts: what `counts` returned then.
    """
    self._path = folder / LIST
    self._source = source
    self._data = data
    self._max_share = max_share
    self._counts = np.array([counts.get(k, 0) for k in COUNTERS], np.int64)
    self._known: set[tuple[str, str | int]] = set()
    self._new: list[dict[str, str | int]] = []
    self._listed = self._total
    self._lines: list[str] = []
    if jax.process_index() == 0:
      self._read(start_step)
      self._list_shards()

  def _read(self, start_step: int) -> None:
    if not self._path.exists():
      return
    for line in self._path.read_text().splitlines():
      try:
        entry = json.loads(line)
      except json.JSONDecodeError:  # A killed process wrote half of it.
        continue
      if entry["step"] <= start_step:
        self._known.add(_key(entry))
        self._lines.append(line + "\n")
    write_whole(self._path, "".join(self._lines))

  def _list_shards(self) -> None:
    """Lists what was wrong when the data was opened, which warned of it."""
    entries = []
    for name, fault in opening_faults(self._data):
      place = {"step": 0, "source": name or self._source}
      entry = place | dataclasses.asdict(fault)
      if (key := _key(entry)) not in self._known:
        self._known.add(key)
        entries.append(entry)
    self._append(entries)

  @property
  def _total(self) -> int:
    return int(self._counts[: len(KINDS)].sum())

  def counts(self) -> dict[str, int]:
    """Returns how often each of `COUNTERS` came up, over all processes."""
    return dict(zip(COUNTERS, self._counts.tolist(), strict=True))

  def metrics(self) -> dict[str, int]:
    """Returns what is logged: the sum, and every kind that came up."""
    kinds = {f"skipped/{k}": n for k, n in self.counts().items() if n}
    retried = kinds.pop("skipped/retried", 0)
    values = {"skipped_examples": self._total, **kinds}
    return values | ({"retried_reads": retried} if retried else {})

  def name(self, found: Iterable[Fault], step: int) -> None:
    """Takes what this process skipped for `step`; warns of each once."""
    for fault in found:
      source, index = "", fault.index
      if index >= 0:
        source, index = locate(self._data, index)
      place = {"step": step, "source": source or self._source}
      entry = place | dataclasses.asdict(fault) | {"index": index}
      if (key := _key(entry)) not in self._known:
        self._known.add(key)
        self._new.append(entry)
        logging.warning(
          "skipped: %s: %s (%s)", fault.name, fault.reason, fault.kind
        )

  def count(self, counters: np.ndarray, drawn: int) -> None:
    """Adds the counts of one step, int [len(COUNTERS)], over all processes.

    Args:
      counters: how often each of `COUNTERS` came up.
      drawn: the examples used so far, over all processes.

    Raises:
      RunStopped: too large a share was skipped.
    """
    self._counts += counters
    total = self._total
    if total <= self._max_share * max(drawn + total, FEWEST):
      return
    self.write()
    kinds = ", ".join(
      f"{k} {n}" for k, n in self.counts().items() if n and k in KINDS
    )
    raise RunStopped(
      f"{total} of {drawn + total} examples cannot be used ({kinds}), more "
      f"than config.data.max_skipped={self._max_share}; {self._path} lists them"
    )

  def write(self) -> None:
    """Adds to the list what is new; all processes must call it together."""
    if self._listed == self._total:
      return
    self._listed = self._total
    gathered = processes.gather(json.dumps(self._new))
    own, self._new = self._new, []
    if jax.process_index() != 0:
      return
    entries = list(own)
    for text in gathered[1:]:
      for entry in json.loads(text):
        if (key := _key(entry)) not in self._known:
          self._known.add(key)
          entries.append(entry)
    entries.sort(key=lambda e: (e["step"], e["source"], e["index"]))
    self._append(entries)

  def _append(self, entries: list[dict[str, str | int]]) -> None:
    texts = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    # Names of files need not be Unicode; what replaces a byte is JSON as well.
    lines = [
      text.encode("utf-8", "backslashreplace").decode() + "\n" for text in texts
    ]
    if not lines:
      return
    if "://" in str(self._path):  # Object stores cannot append.
      self._lines += lines
      write_whole(self._path, "".join(self._lines))
      return
    with self._path.open("a") as file:
      file.writelines(lines)


def _key(entry: Mapping[str, str | int]) -> tuple[str, str | int]:
  """Returns what tells one example, or one shard, from another."""
  index = entry["index"]
  if not isinstance(index, int) or index < 0:
    index = entry["name"]
  return str(entry["source"]), index
