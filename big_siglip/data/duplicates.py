"""Finds examples that are there twice, within and across sources.

An example is known by a key of 64 bits: of its encoded image, or of its name.
The keys of a source are computed once, in one pass over it, and kept in a file;
later starts only read that file and compare a few keys of examples.
"""

from collections.abc import Mapping
import concurrent.futures
import hashlib
import itertools
import json
import os
import pathlib

from absl import logging
import filelock
import numpy as np

from big_siglip.data.sources import Example, Source
from big_siglip.errors import BadExample

KEYS = ("image", "name")
_NUM_CHECKED = 16  # Examples of a source whose kept keys are computed again.
_AT_ONCE = 1_024  # Examples that are handed to a thread.


def first_of_each(
  sources: Mapping[str, Source],
  known: Mapping[str, str],
  key: str,
  folder: str | os.PathLike,
  num_threads: int = 8,
) -> dict[str, np.ndarray]:
  """Returns the numbers of the examples to keep, ascending, by source.

  Of several examples of one key the first is kept, the sources taken in
  alphabetical order. Examples that cannot be read are kept: training names
  them. Takes 24 bytes of memory an example.

  Args:
    sources: by name.
    known: what stands for the data of each, by the same names: the file of its
      keys is found by it.
    key: "image": the encoded bytes are equal; "name": the names are.
    folder: where keys are kept; made if it does not exist.
    num_threads: threads that read.
  """
  names = sorted(sources)
  keys = [
    _keys_of(sources[name], known[name], key, pathlib.Path(folder), num_threads)
    for name in names
  ]
  _, first = np.unique(np.concatenate(keys), return_index=True)
  first.sort()
  starts = list(itertools.accumulate(map(len, keys), initial=0))
  bounds = np.searchsorted(first, starts)
  kept = {
    name: first[bounds[i] : bounds[i + 1]] - starts[i]
    for i, name in enumerate(names)
  }
  for name in names:
    logging.info(
      "%s: %d of %d examples kept, the others are there twice",
      *(known[name], len(kept[name]), len(sources[name])),
    )
  return kept


def _keys_of(
  source: Source, known: str, key: str, folder: pathlib.Path, num_threads: int
) -> np.ndarray:
  """Returns the keys of a source, uint64 [n], from the file or computed."""
  what = json.dumps([known, len(source), key]).encode()
  digest = hashlib.sha256(what).hexdigest()[:16]
  file = folder / f"keys-{key}-{digest}.npy"
  folder.mkdir(parents=True, exist_ok=True)
  with filelock.FileLock(f"{file}.lock"):
    if file.exists():
      keys = np.load(file)
      checked = np.linspace(0, len(source) - 1, _NUM_CHECKED).astype(int)
      if all(keys[i] == _key(source, i, key) for i in checked):
        return keys
    logging.info("%s: reading all %d examples, once", known, len(source))
    keys = _compute(source, key, num_threads)
    partial = file.with_suffix(f".{os.getpid()}.npy")
    np.save(partial, keys)
    partial.replace(file)
  return keys


def _compute(source: Source, key: str, num_threads: int) -> np.ndarray:
  keys = np.zeros(len(source), np.uint64)

  def fill(start: int) -> None:
    for i in range(start, min(start + _AT_ONCE, len(source))):
      keys[i] = _key(source, i, key)

  with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
    for _ in pool.map(fill, range(0, len(source), _AT_ONCE)):
      pass
  return keys


def _key(source: Source, index: int, key: str) -> int:
  try:
    data = _bytes_of(source[index], key)
  except BadExample:  # Like no other.
    data = f"example {index} of {len(source)} cannot be read".encode()
  digest = hashlib.blake2b(data, digest_size=8).digest()
  return int.from_bytes(digest, "little")


def _bytes_of(example: Example, key: str) -> bytes:
  if key == "name":
    return example.name.encode("utf-8", "surrogatepass")
  return bytes(example.image)
