"""The folder that a data set is prepared in: begun, gone on with, finished."""

import contextlib
import json
from typing import Any

from etils import epath
import filelock
import tensorflow_datasets as tfds

from big_siglip.errors import RunStopped, UserError
from big_siglip.preparation import shards, wit
from big_siglip.preparation.files import is_remote, write_whole
from big_siglip.preparation.job import Job
from big_siglip.preparation.records import Tally
from big_siglip.preparation.store import Store

DESCRIPTION = "prepare.json"
REPORT = "prepare_report.jsonl"
SUMMARY = "prepare_summary.json"
_INFO = "dataset_info.json"  # TFDS's; the last file that is written.
_WIT_CITATION = (
  "Srinivasan et al. 2021, WIT: Wikipedia-based Image Text Dataset for "
  "Multimodal Multilingual Machine Learning, arXiv:2103.01913"
)


class Folder:
  """Where everything of one job lies; may be pickled.

  Attributes:
    path: the data set's folder.
    rows: rows of WIT, sorted into the shards that their images go to.
    parts: shards that are whole, and a marker for each.
    store: fetched images.
  """

  def __init__(self, job: Job):
    self.job = job
    self.path = epath.Path(job.output).expanduser()
    self._work = self.path / "work"
    self.rows = self._work / "rows"
    self.parts = self._work / "parts"
    kept = job.store and epath.Path(job.store).expanduser()
    self.store = Store(kept or self._work / "images", job.of_images.shrink_to)

  @property
  def is_finished(self) -> bool:
    """Whether the data set is whole."""
    return (self.path / _INFO).exists()

  def begin(self) -> None:
    """Makes the folder, or sees that it belongs to this very job.

    Raises:
      UserError: it holds something else, or cannot be written.
    """
    description = json.loads(json.dumps(self.job.description()))
    file = self.path / DESCRIPTION
    try:
      if file.exists():
        _compare(self.path, json.loads(file.read_text()), description)
      elif self.path.exists() and any(
        f.name != ".lock" for f in self.path.iterdir()
      ):
        raise UserError(f"--output={self.path}: holds something else")
      else:
        write_whole(file, json.dumps(description, indent=1).encode())
      self._make_store()
    except (OSError, ImportError, json.JSONDecodeError) as error:
      reason = getattr(error, "strerror", None) or error
      raise UserError(f"--output={self.path}: {reason}") from error

  def lock(self) -> contextlib.AbstractContextManager:
    """Returns a lock that one program holds at a time (not in a bucket)."""
    if is_remote(self.path):
      return contextlib.nullcontext()
    lock = filelock.FileLock(self.path / ".lock")
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      return lock.acquire(timeout=0)
    except filelock.Timeout as error:
      raise UserError(f"--output={self.path}: is being prepared") from error
    except OSError as error:
      raise UserError(f"--output={self.path}: {error.strerror}") from error

  def rows_file(self, number: int) -> epath.Path:
    """Returns the rows of a shard, gzipped JSON lines, sorted by key."""
    return self.rows / f"{number:05}.jsonl.gz"

  def tally_file(self, number: int) -> epath.Path:
    """Returns what was counted in an input of WIT."""
    return self.rows / f"input-{number:05}.json"

  @property
  def fetched_file(self) -> epath.Path:
    """The file that says that all images were asked for."""
    return self._work / "fetched"

  def missing_rows(self) -> list[int]:
    """Returns the shards whose rows are not sorted yet."""
    numbers = range(self.job.num_shards)
    return [i for i in numbers if not self.rows_file(i).exists()]

  def missing_parts(self) -> list[int]:
    """Returns the shards that are not written yet."""
    numbers = range(self.job.num_shards)
    return [i for i in numbers if not shards.marker(self.parts, i).exists()]

  def finish(self) -> dict[str, Any]:
    """Names the shards as TFDS does, writes its metadata, and the report.

    May be killed anywhere and called again. Returns the counts.

    Raises:
        RunStopped: not one example is left; or too many images could not be
        fetched for now, which the next run tries again.
    """
    tally, lengths = Tally(), {split: {} for split in shards.SPLITS}
    if self.job.kind == "wit":
      for number in range(len(self.job.inputs)):
        tally.add(json.loads(self.tally_file(number).read_text()))
    passing = set()
    for number in range(self.job.num_shards):
      fields = shards.read_marker(self.parts, number)
      assert fields is not None, f"shard {number} is written before it is told"
      if not all(fault["lasting"] for fault in fields["faults"]):
        passing.add(number)
      tally.add(fields)
      for split, length in fields["lengths"].items():
        lengths[split][number] = length
    self._write_report(tally)
    self._check_missing(tally, passing)
    if not tally.counts["examples"]:
      raise RunStopped(
        f"{self.path}: no example is left; {REPORT} and {SUMMARY} there say why"
      )
    splits = [
      self._finish_split(split, of_shard)
      for split, of_shard in lengths.items()
      if of_shard
    ]
    shards.write_metadata(self.path, self.job.name, splits, self._about())
    self.clean()
    return dict(tally.counts)

  def clean(self) -> None:
    """Removes what only a restart would have needed."""
    if self._work.exists():
      self._work.rmtree()

  def read_summary(self) -> dict[str, int]:
    """Returns the counts of a finished data set."""
    return json.loads((self.path / SUMMARY).read_text())

  def _make_store(self) -> None:
    """Makes the folder that is to outlive this one, before hours are spent."""
    if self.job.store:
      try:
        epath.Path(self.job.store).expanduser().mkdir(
          parents=True, exist_ok=True
        )
      except (OSError, ImportError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--store={self.job.store}: {reason}") from error

  def _check_missing(self, tally: Tally, passing: set[int]) -> None:
    missing = [f["kind"] for f in tally.faults if not f["lasting"]]
    images = tally.counts["examples"] + len(missing)
    if len(missing) <= self.job.max_missing * images:
      return
    self.fetched_file.unlink(missing_ok=True)
    for number in passing:
      shards.marker(self.parts, number).unlink()
    kinds = ", ".join(sorted(set(missing)))
    raise RunStopped(
      f"{self.path}: {len(missing)} of {images} images could not be fetched "
      f"for now ({kinds}); run this again to ask for them again, or with "
      "--max_missing=1 to do without"
    )

  def _finish_split(
    self, split: str, lengths: dict[int, int]
  ) -> tfds.core.SplitInfo:
    """Renames the shards; TFDS's names hold how many of them there are."""
    template = shards.shard_template(self.path, self.job.name, split)
    num_bytes = 0
    for index, number in enumerate(lengths):
      target = template.sharded_filepath(
        shard_index=index, num_shards=len(lengths)
      )
      part = self.parts / shards.part_name(split, number)
      if part.exists():  # Otherwise it was renamed before a restart.
        part.replace(target)
      num_bytes += target.stat().length
    return tfds.core.SplitInfo(
      name=split,
      shard_lengths=list(lengths.values()),
      num_bytes=num_bytes,
      filename_template=template,
    )

  def _write_report(self, tally: Tally) -> None:
    lines = (json.dumps(fault) + "\n" for fault in tally.faults)
    write_whole(self.path / REPORT, "".join(lines).encode())
    counts = dict(sorted(tally.counts.items()))
    write_whole(self.path / SUMMARY, json.dumps(counts, indent=1).encode())

  def _about(self) -> dict[str, str]:
    if not self.job.kind.startswith("wit"):
      inputs = f"{len(self.job.inputs)} {self.job.kind} files"
      return {"description": f"Images with captions, from {inputs}."}
    return {
      "description": (
        "Images of Wikipedia with captions in many languages. Each image has "
        "a licence of its own, which the page at metadata_url states."
      ),
      "homepage": "https://github.com/google-research-datasets/wit",
      "citation": _WIT_CITATION,
      "license": f"Texts: {wit.TEXT_LICENSE}. Images: see metadata_url.",
    }


def _compare(path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
  for field, value in wanted.items():
    known = found.get(field)
    if known == value:
      continue
    if isinstance(known, dict) and isinstance(value, dict):  # The first of it.
      names = [n for n in (known | value) if known.get(n) != value.get(n)]
      field, known, value = names[0], known.get(names[0]), value.get(names[0])
    raise UserError(
      f"--output={path}: holds another data set: its {field} is "
      f"{_shown(known)}, not {_shown(value)}"
    )


def _shown(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) < 100 else f"{text[:97]}..."
