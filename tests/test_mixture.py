"""Several sources as one: shares, order, resume, duplicates."""

import collections
import dataclasses
import itertools
import json
import subprocess
import sys

import loading
from ml_collections import ConfigDict
import numpy as np
import pytest
import runs

from big_siglip import command_line, config, training_data
from big_siglip.data import duplicates, faults, mixture, pipeline, sources
from big_siglip.errors import BadExample, UserError
from big_siglip.run import skipped


@dataclasses.dataclass(frozen=True)
class Numbers:
  """Example i of NAME is called NAME:i; some cannot be used."""

  name: str
  length: int
  bad: tuple[int, ...] = ()
  class_names: None = None

  def __len__(self):
    return self.length

  def __getitem__(self, index):
    if not 0 <= index < self.length:
      raise IndexError(index)
    if index in self.bad:
      raise BadExample("is bad")
    name = f"{self.name}:{index}"
    return sources.Example(name.encode(), (name,), name)


def _load(example, rng):
  source, number = example.name.split(":")
  return {
    "source": np.int64("abc".index(source)),
    "number": np.int64(number),
    "draw": rng.random(),
  }


_VIEWS = [
  loading.OneByOne(
    _load, {"source": "int64", "number": "int64", "draw": "float64"}
  )
]
LENGTHS = {"a": 12, "b": 50, "c": 7}
WEIGHTS = {"a": 1.0, "b": 5.0, "c": 2.5}


def _mixture(bad=(), lengths=LENGTHS, weights=WEIGHTS):
  made = {name: Numbers(name, count) for name, count in lengths.items()}
  made["a"] = dataclasses.replace(made["a"], bad=bad)
  return mixture.Mixture(made, weights)


def _batches(source, count, **options):
  options = dict(batch_size=17, seed=3, num_threads=0) | options
  batches = pipeline.train_batches(source, _VIEWS, **options)
  try:
    return list(itertools.islice(batches, count))
  finally:
    batches.close()


def _column(batches, key):
  return np.concatenate([batch[key] for batch in batches])


def _assert_equal(left, right):
  assert len(left) == len(right)
  for a, b in zip(left, right, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_it_holds_all_examples_of_all_sources():
  mixed = _mixture()
  names = [example.name for example in mixed]
  expected = [f"{name}:{i}" for name in "abc" for i in range(LENGTHS[name])]
  assert len(mixed) == len(expected) and names == expected
  for index, name in enumerate(names):
    source, number = mixture.locate(mixed, index)
    assert f"{source}:{number}" == name
  assert mixture.locate(Numbers("a", 5), 3) == ("", 3)


def test_every_stretch_has_each_source_s_share():
  drawn = _column(_batches(_mixture(), 40), "source")
  for start, stop in ((0, 17), (17, 34), (100, 400), (0, 680)):
    counts = np.bincount(drawn[start:stop], minlength=3)
    expected = (stop - start) * np.array([1, 5, 2.5]) / 8.5
    assert np.abs(counts - expected).max() <= 1, (start, stop)


def test_each_source_is_gone_through_as_if_alone():
  batches = _batches(_mixture(), 60)
  drawn, numbers = _column(batches, "source"), _column(batches, "number")
  draws = _column(batches, "draw")
  assert len(set(draws)) == len(draws)
  for which, length in enumerate(LENGTHS.values()):
    own = numbers[drawn == which]
    whole = own[: len(own) // length * length].reshape(-1, length)
    assert len(whole) >= 2
    for epoch in whole:
      np.testing.assert_array_equal(np.sort(epoch), np.arange(length))
    assert len({tuple(epoch) for epoch in whole}) == len(whole)


def test_sources_of_one_length_have_orders_of_their_own():
  mixed = _mixture(lengths={"a": 30, "b": 30}, weights={"a": 1, "b": 1})
  batches = _batches(mixed, 3, batch_size=20)
  drawn, numbers = _column(batches, "source"), _column(batches, "number")
  assert list(numbers[drawn == 0]) != list(numbers[drawn == 1])


def test_epochs_are_what_was_drawn():
  mixed = _mixture()
  for count in (1, 20, 60):
    drawn = np.bincount(_column(_batches(mixed, count), "source"), minlength=3)
    epochs = mixture.epochs(mixed, 17 * count)
    for which, (name, length) in enumerate(LENGTHS.items()):
      assert abs(epochs[f"epochs/{name}"] * length - drawn[which]) <= 1
  assert mixture.epochs(Numbers("a", 8), 20) == {"epochs": 2.5}


def test_without_weights_all_end_their_epochs_together():
  mixed = _mixture(weights=dict.fromkeys(LENGTHS))
  epochs = mixture.epochs(mixed, 690)
  np.testing.assert_allclose(list(epochs.values()), 10, rtol=0.01)
  drawn = np.bincount(_column(_batches(mixed, 46, batch_size=15), "source"))
  np.testing.assert_allclose(drawn, np.multiply(10, [*LENGTHS.values()]), 0.01)


def test_the_order_in_a_config_means_nothing():
  _assert_equal(
    _batches(_mixture(), 5),
    _batches(_mixture(lengths=dict(reversed(LENGTHS.items()))), 5),
  )


def test_processes_together_see_the_batches_of_one():
  whole = _batches(_mixture(bad=(3, 4)), 6, batch_size=16)
  for count in (2, 4, 8):
    shares = [
      _batches(
        _mixture(bad=(3, 4)),
        6,
        batch_size=16,
        process_index=p,
        process_count=count,
      )
      for p in range(count)
    ]
    joined = [
      {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
      for parts in zip(*shares, strict=True)
    ]
    _assert_equal(joined, whole)


def test_resumed_on_two_one_and_four_processes_it_is_the_same_run():
  """One integer is all the state there is."""
  options = dict(batch_size=16, num_threads=2)
  whole = _batches(_mixture(bad=(5,)), 12, **options)
  seen, start = [], 0
  for count, steps in ((2, 5), (1, 3), (4, 4)):
    shares = []
    for process in range(count):
      batches = pipeline.train_batches(
        _mixture(bad=(5,)),
        _VIEWS,
        seed=3,
        start=start,
        process_index=process,
        process_count=count,
        **options,
      )
      shares.append(list(itertools.islice(batches, steps)))
      assert batches.next_batch == start + steps
      batches.close()
    start += steps
    seen += [
      {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
      for parts in zip(*shares, strict=True)
    ]
  _assert_equal(seen, whole)


def test_what_cannot_be_used_is_replaced_from_its_own_source():
  mixed = _mixture(bad=tuple(range(9)))
  batches = _batches(mixed, 40)
  drawn = np.bincount(_column(batches, "source"), minlength=3)
  np.testing.assert_allclose(drawn, 680 * np.array([1, 5, 2.5]) / 8.5, atol=1)
  numbers = _column(batches, "number")[_column(batches, "source") == 0]
  assert set(numbers) == {9, 10, 11}


def test_skipped_examples_are_listed_by_their_source(tmp_path):
  mixed = _mixture()
  kept = {"a": np.arange(12), "b": np.arange(50), "c": np.array([1, 4, 6])}
  parts = {
    name: mixture.Subset(Numbers(name, LENGTHS[name]), kept[name])
    for name in LENGTHS
  }
  for data, index, number in (
    (mixed, 12 + 50 + 2, 2),
    (mixture.Mixture(parts, WEIGHTS), 12 + 50 + 2, 6),
  ):
    listed = skipped.Skipped(
      tmp_path, "own", data, max_share=1.0, start_step=0, counts={}
    )
    listed.name([faults.Fault(index, "record", "c:2", "is bad")], step=1)
    counters = np.zeros(len(faults.COUNTERS), np.int32)
    counters[faults.KINDS.index("record")] = 1
    listed.count(counters, drawn=64)
    listed.write()
    (line,) = (tmp_path / skipped.LIST).read_text().splitlines()
    assert json.loads(line)["source"] == "c"
    assert json.loads(line)["index"] == number
    (tmp_path / skipped.LIST).unlink()


_BILLION = """
import dataclasses, resource, time, tracemalloc
import numpy as np
from big_siglip.data import mixture, pipeline, sources

@dataclasses.dataclass(frozen=True)
class Billion:
  class_names = None
  def __len__(self):
    return 10**9
  def __getitem__(self, index):
    return sources.Example(b"", ("",), str(index))

class Nothing:
  name = "nothing"
  def fields(self, batch):
    return {}
  def __call__(self, examples, rngs, out):
    return {}

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tracemalloc.start()
start = time.perf_counter()
source = mixture.Mixture({"a": Billion(), "b": Billion()}, {"a": 1, "b": 3})
batches = pipeline.train_batches(source, [Nothing()], batch_size=64, seed=1)
first = next(batches)
seconds = time.perf_counter() - start
batches.close()
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
peak = tracemalloc.get_traced_memory()[1] / 1e6
print(seconds, grown / 1024, peak, len(set(first["index"])))
"""


def test_a_billion_examples_cost_no_memory():
  done = subprocess.run(
    [sys.executable, "-c", _BILLION],
    cwd=runs.ROOT,
    capture_output=True,
    text=True,
    timeout=200,
  )
  assert done.returncode == 0, done.stderr
  seconds, grown, traced, distinct = map(float, done.stdout.split())
  assert traced < 20 and grown < 200  # MB; the time is `make bench-data`'s.
  assert seconds > 0 and distinct == 64


@dataclasses.dataclass
class Images:
  """A source that counts what is read of it."""

  images: tuple[bytes, ...]
  reads: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  class_names: None = None

  def __len__(self):
    return len(self.images)

  def __getitem__(self, index):
    self.reads[index] += 1
    if self.images[index] == b"bad":
      raise BadExample("is bad")
    # A file's name may be any bytes, of which this is one.
    name = f"name \udcff {index % 3}"
    return sources.Example(self.images[index], ("",), name)


def test_duplicates_are_left_out_within_and_across_sources(tmp_path):
  made = {
    "a": Images((b"one", b"two", b"one", b"bad")),
    "b": Images((b"three", b"two", b"bad", b"four", b"three")),
  }
  known = {name: name for name in made}
  kept = duplicates.first_of_each(made, known, "image", tmp_path)
  # An example that cannot be read is no duplicate: training names it.
  np.testing.assert_array_equal(kept["a"], [0, 1, 3])
  np.testing.assert_array_equal(kept["b"], [0, 2, 3])
  named = duplicates.first_of_each(made, known, "name", tmp_path)
  np.testing.assert_array_equal(named["a"], [0, 1, 2, 3])
  np.testing.assert_array_equal(named["b"], [2])
  subset = mixture.Subset(made["b"], kept["b"])
  assert [subset[i].image for i in (0, 2)] == [b"three", b"four"]
  assert mixture.locate(subset, 2) == ("", 3)


def test_keys_are_computed_once_and_again_when_the_data_changes(tmp_path):
  source = Images(tuple(f"image {i % 990}".encode() for i in range(1_000)))
  find = lambda: duplicates.first_of_each(  # noqa: E731
    {"a": source}, {"a": "a"}, "image", tmp_path
  )
  first = find()["a"]
  assert len(first) == 990 and source.reads.total() == 1_000
  source.reads.clear()
  np.testing.assert_array_equal(find()["a"], first)
  assert source.reads.total() <= 16, "a few are compared, no pass"
  source.images = tuple(f"other {i}".encode() for i in range(1_000))
  assert len(find()["a"]) == 1_000


def _config(**entries):
  c = runs.config()
  with c.unlocked():
    c.data.mixture = ConfigDict(entries)
  return c


DIGITS = {"name": "digits", "path": None, "split": "train", "weight": None}


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"weight": 0.0}, "mixture.b.weight=0.0: must be above 0"),
    ({"weight": "1"}, "mixture.b.weight='1': must be float or int or None"),
    ({"weight": None}, "weight=None: must be a number"),
    ({"weight": np.inf}, "mixture.b.weight=inf: must be above 0, and finite"),
    ({"name": "embeddings"}, "must not be embeddings"),
    ({"wait": 1}, "mixture.b.wait: unknown"),
    ({"split": 1}, "mixture.b.split=1: must be str"),
  ],
)
def test_a_wrong_entry_is_named(change, said):
  good = {**DIGITS, "weight": 1.0}
  assert not config.find_problems(_config(a=good, b=good))
  (problem,) = config.find_problems(_config(a=good, b=good | change))
  assert said in problem


def test_an_entry_that_is_no_section_is_named():
  (problem,) = config.find_problems(_config(a=DIGITS, b=3))
  assert problem == "config.data.mixture.b=3: must be a section"


def test_captions_that_are_examples_of_their_own_are_no_duplicates():
  with pytest.raises(UserError, match="deduplicate='image': must be none"):
    runs.config(data__captions="all", data__deduplicate="image")


def test_what_was_wrong_when_sources_were_opened_is_kept():
  fault = faults.Fault(-1, "missing", "b-0003.tar", "is not there")
  source = Images((b"one", b"two"))
  source.faults = (fault,)
  subset = mixture.Subset(source, np.array([1]))
  mixed = mixture.Mixture({"a": Numbers("a", 3), "b": subset}, WEIGHTS)
  assert subset.faults == mixed.faults == (fault,)


def test_a_source_that_cannot_be_opened_is_named():
  with pytest.raises(UserError, match="config.data.mixture.b.split='dev'"):
    training_data.train_source(_config(a=DIGITS, b={**DIGITS, "split": "dev"}))


def test_a_config_becomes_a_mixture_without_duplicates():
  plain = training_data.train_source(runs.config())
  test = {**DIGITS, "split": "test"}
  mixed = training_data.train_source(
    _config(one=DIGITS, other=DIGITS, test=test)
  )
  assert mixed.names == ("one", "other", "test")
  assert mixed.lengths[0] == mixed.lengths[1] == len(plain)
  c = _config(one=DIGITS, test=test)
  c.data.deduplicate = "image"
  distinct = training_data.train_source(c)
  assert len({example.image for example in distinct}) == len(distinct)
  with pytest.raises(UserError, match="mixture.other: is empty"):
    c = _config(one=DIGITS, other=DIGITS)
    c.data.deduplicate = "image"
    training_data.train_source(c)


def test_a_mixture_can_be_changed_on_the_command_line(tmp_path):
  arguments = [*runs.overrides(), "--config.data.mixture.two.weight=7.5"]
  loaded = command_line.load_config(runs.mixed_config(tmp_path), arguments)
  assert loaded.data.mixture.two.weight == 7.5
