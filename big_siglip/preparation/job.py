"""What is to be prepared, from what, and how."""

from collections.abc import Iterator
import dataclasses
import functools
import os
from typing import Any

from etils import epath

from big_siglip.errors import UserError
from big_siglip.preparation import parquet, tars, wit
from big_siglip.preparation.filters import check_wit_languages, Filters
from big_siglip.preparation.origins import Limits
from big_siglip.preparation.records import ImageLimits, Record, Tally

_SHARDS_AN_INPUT = 64  # Of wit: one of its ten files has a million images.


@dataclasses.dataclass(frozen=True)
class Job:
  """All that workers need to know; may be pickled.

  Attributes:
    kind: wit, wit_base, tar or parquet.
    inputs: the files, in the order of their names.
    output: the folder of the data set.
    name: of the data set.
    captions: columns (fields) to take as captions; empty: what is usual.
    filters: what stays.
    num_shards: of the data set; only "wit" may choose.
    test_share: of the images, which go into the split "test".
    passes: over the tables of "wit", each for a part of the shards: runners
      that keep all in memory need so many times less of it.
    image_column: of "parquet"; None: found by its name.
    store: where fetched images are kept; None: in the output, until the end.
    limits: of "wit"; None for the others, which fetch nothing.
    of_images: how large they may be, and whether they are shrunk.
    max_missing: share of images that may be missing for what may pass.
  """

  kind: str
  inputs: tuple[str, ...]
  output: str
  name: str
  captions: tuple[str, ...]
  filters: Filters
  num_shards: int
  test_share: float = 0.0
  passes: int = 1
  image_column: str | None = None
  store: str | None = None
  limits: Limits | None = None
  of_images: ImageLimits = ImageLimits()
  max_missing: float = 0.05

  def input(self, number: int) -> epath.Path:
    """Returns the path of an input."""
    return epath.Path(self.inputs[number])

  def description(self) -> dict[str, Any]:
    """Returns all that the content of the data set depends on, for JSON."""
    return {
      "kind": self.kind,
      "inputs": {
        path.name: path.stat().length for path in map(epath.Path, self.inputs)
      },
      "name": self.name,
      "captions": list(self.captions),
      "filters": {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(self.filters).items()
      },
      "num_shards": self.num_shards,
      "test_share": self.test_share,
      "image_column": self.image_column,
      **dataclasses.asdict(self.of_images),
    }

  def read(self, number: int, tally: Tally) -> Iterator[Record]:
    """Yields the records of an input that come with their images."""
    path = self.input(number)
    args = (self.filters, tally, self.of_images)
    if self.kind == "tar":
      return tars.read(path, self.captions, *args)
    return parquet.read(path, self._columns(path), *args)

  def check_inputs(self) -> None:
    """Opens every input.

    Raises:
      UserError: one is not what it should be; or a language is unknown.
    """
    if self.kind in ("wit", "wit_base"):
      check_wit_languages(self.filters.languages)
      allowed = (*wit.CAPTIONS, *wit.MORE_CAPTIONS)
      for column in self.captions:
        if column not in allowed:
          raise UserError(
            f"--captions: {column!r} must be one of {', '.join(allowed)}"
          )
    check = {
      "wit": functools.partial(wit.check_file, captions=self.captions),
      "tar": tars.check_file,
    }.get(self.kind, self._columns)
    for number in range(len(self.inputs)):
      check(self.input(number))

  def _columns(self, path: epath.Path) -> parquet.Columns:
    return parquet.find_columns(
      path,
      self.captions,
      self.image_column,
      self.kind == "wit_base",
      self.filters.languages,
    )


def make_job(
  kind: str,
  inputs: list[str],
  output: str,
  filters: Filters,
  *,
  name: str | None = None,
  captions: tuple[str, ...] = (),
  num_shards: int | None = None,
  test_share: float = 0.0,
  passes: int = 1,
  image_column: str | None = None,
  store: str | None = None,
  limits: Limits | None = None,
  of_images: ImageLimits = Job.of_images,
  max_missing: float = Job.max_missing,
) -> Job:
  """Returns a job whose inputs are there and look right.

  Args:
    kind: wit, wit_base, tar or parquet.
    inputs: files or patterns such as "wit_v1.train.all-*.tsv.gz".
    output: see `Job`, as the rest.
    filters: see `Job`.
    name: None: `kind`.
    captions: see `Job`.
    num_shards: None: 64 for each input of "wit", one for each of the others.
    test_share: see `Job`.
    passes: see `Job`.
    image_column: see `Job`.
    store: see `Job`.
    limits: needed by "wit".
    of_images: see `Job`.
    max_missing: see `Job`.

  Raises:
    UserError: one line that says what is wrong.
  """
  paths = _find(inputs)
  for folder in filter(None, (output, store)):
    _path(folder)
  if kind == "wit" and limits is None:
    raise UserError("--user_agent must be given: who asks, and their address")
  if kind != "wit" and num_shards is not None:
    raise UserError(f"--num_shards={num_shards}: only of wit; {kind} has one")
  if num_shards is not None and not 1 <= num_shards <= 99_999:
    raise UserError(f"--num_shards={num_shards}: must be in 1 to 99999")
  if not 0 <= test_share < 1:
    raise UserError(f"--test_share={test_share}: must be in [0, 1)")
  if passes < 1:
    raise UserError(f"--passes={passes}: must be at least 1")
  if not 0 <= max_missing <= 1:
    raise UserError(f"--max_missing={max_missing}: must be in [0, 1]")
  name = kind if name is None else name
  if not name.isidentifier() or name != name.lower():
    raise UserError(f"--name={name!r}: must be a-z, 0-9 and _")
  usual = _SHARDS_AN_INPUT if kind == "wit" else 1
  job = Job(
    kind=kind,
    inputs=tuple(map(os.fspath, paths)),
    output=output,
    name=name,
    captions=captions or (wit.CAPTIONS if kind.startswith("wit") else ()),
    filters=filters,
    num_shards=num_shards or usual * len(paths),
    test_share=test_share,
    passes=passes,
    image_column=image_column,
    store=store,
    limits=limits,
    of_images=of_images,
    max_missing=max_missing,
  )
  job.check_inputs()
  return job


def _path(text: str) -> epath.Path:
  try:
    return epath.Path(text).expanduser()
  except KeyError as error:  # Of a scheme that epath does not know.
    raise UserError(f"{text}: {error.args[0]} is not supported here") from error


def _find(inputs: list[str]) -> list[epath.Path]:
  found = {}
  for text in inputs:
    path = _path(text)
    if any(c in path.name for c in "*?["):
      paths = list(path.parent.glob(path.name))
    else:
      paths = [path] if path.exists() else []
    if not paths:
      raise UserError(f"{text}: no such file")
    for path in paths:
      if path.is_dir():
        raise UserError(f"{path}: is a folder; give its files, as '{path}/*'")
      # Names of examples start with it.
      if found.setdefault(path.name, path) != path:
        raise UserError(f"{path} and {found[path.name]}: have the same name")
  if not found:
    raise UserError("at least one input file must be given")
  return [found[name] for name in sorted(found)]
