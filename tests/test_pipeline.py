"""The order of examples, and what happens to those that cannot be read."""

import dataclasses
import gc
import io
import itertools
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import weakref

from absl import flags
import grain
import loading
import numpy as np
from PIL import Image
import pytest

from big_siglip.data import faults, images, order, pipeline, rows, sources, text
from big_siglip.data.mixture import Mixture
from big_siglip.data.prefetch import Prefetcher
from big_siglip.data.views import Pixels, Tokens, view
from big_siglip.errors import RunStopped, Stalled

NUM_EXAMPLES = 20


@dataclasses.dataclass(frozen=True)
class Numbers:
  """A source whose example i is only its number; some are unreadable."""

  length: int
  bad: tuple[int, ...] = ()
  class_names: None = None

  def __len__(self):
    return self.length

  def __getitem__(self, index):
    image = b"bad" if index in self.bad else b""
    return sources.Example(image, (str(index),), f"number {index}")


def _number(example, rng):
  if example.image == b"bad":
    raise images.BadImage("is bad")
  return {
    "number": np.int64(int(example.texts[0])),
    "draw": rng.random(),
  }


_load_number = loading.OneByOne(_number, {"number": "int64", "draw": "float64"})


def _batches(source, count, views=(_load_number,), **options):
  options = dict(batch_size=8, seed=3, num_threads=0) | options
  batches = pipeline.train_batches(source, views, **options)
  try:
    return list(itertools.islice(batches, count))
  finally:
    batches.close()


def _assert_equal(left, right):
  assert len(left) == len(right)
  for a, b in zip(left, right, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def _column(batches, key):
  return np.concatenate([batch[key] for batch in batches])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Small images, one of which is truncated."""
  folder = tmp_path_factory.mktemp("folder")
  rng = np.random.default_rng(0)
  rows = ["image,caption"]
  for index in range(NUM_EXAMPLES):
    pixels = rng.integers(0, 256, (40, 30, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg")
    data = buffer.getvalue()
    data = data[: len(data) // 2] if index == 11 else data
    (folder / f"{index}.jpg").write_bytes(data)
    rows += [f"{index}.jpg,{index} first", f"{index}.jpg,{index} second"]
  (folder / "captions.csv").write_text("\n".join(rows))
  return str(folder)


@pytest.fixture
def views():
  pixels = Pixels(16, crop_min_area=0.3, flip=True)
  return pixels, Tokens(text.make_tokenizer("bytes"), 12)


def test_same_seed_same_batches_other_seed_other_batches():
  source = Numbers(50)
  _assert_equal(_batches(source, 9), _batches(source, 9))
  other = _batches(source, 9, seed=4)
  assert (
    _column(_batches(source, 9), "index") != _column(other, "index")
  ).any()


@pytest.mark.parametrize("length", [1, 2, 7, 50])
def test_every_epoch_holds_every_index_once_in_another_order(length):
  count = -(-4 * length // 8)
  indices = _column(_batches(Numbers(length), count), "index")[: 4 * length]
  epochs = indices.reshape(4, length)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(length))
  if length == 50:
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_neighbouring_seeds_do_not_share_an_epoch_order():
  first = _column(_batches(Numbers(48), 12, seed=0), "index").reshape(2, 48)
  second = _column(_batches(Numbers(48), 12, seed=1), "index").reshape(2, 48)
  assert len({tuple(epoch) for epoch in [*first, *second]}) == 4


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_processes_together_see_the_batches_of_one(processes):
  source = Numbers(21)
  shares = [
    _batches(source, 7, process_index=p, process_count=processes)
    for p in range(processes)
  ]
  joined = [
    {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
    for parts in zip(*shares, strict=True)
  ]
  assert all(len(part["index"]) == 8 // processes for part in shares[0])
  _assert_equal(joined, _batches(source, 7))


def test_any_batch_can_be_started_from():
  source = Numbers(21, bad=(3,))
  whole = _batches(source, 12)
  for start in (1, 5, 11):
    _assert_equal(_batches(source, 12 - start, start=start), whole[start:])
  late = pipeline.train_batches(
    source, [_load_number], batch_size=8, seed=3, start=10**9
  )
  assert late.next_batch == 10**9
  next(late)
  assert late.next_batch == 10**9 + 1
  late.close()


def test_threads_and_workers_change_nothing(folder, views):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain hands them to its workers.
  source = sources.open_source("folder", "all", folder)
  plain = _batches(source, 6, views, start=2)
  for options in (dict(num_threads=1), dict(num_threads=4)):
    _assert_equal(_batches(source, 6, views, start=2, **options), plain)
  for threads in (0, 4):
    workers = _batches(
      source, 6, views, start=2, num_workers=2, num_threads=threads
    )
    _assert_equal(workers, plain)


def test_draws_depend_on_seed_epoch_and_index_alone():
  length = 24
  draws = {}
  for batch_size, start in ((8, 0), (6, 0), (12, 1), (3, 20)):
    batches = _batches(
      Numbers(length), 96 // batch_size, batch_size=batch_size, start=start
    )
    position = start * batch_size
    for batch in batches:
      for index, draw in zip(batch["index"], batch["draw"], strict=True):
        key = (position // length, int(index))
        assert draws.setdefault(key, draw) == draw
        position += 1
  assert len(set(draws.values())) == len(draws) >= 4 * length
  other = _batches(Numbers(length), 3, seed=4)
  assert not set(_column(other, "draw")) & set(draws.values())


def test_augmentation_changes_between_epochs_not_between_runs(folder, views):
  source = sources.open_source("folder", "all", folder)
  seen = {}
  for batch in _batches(source, 10, views, batch_size=20):
    for index, image, tokens in zip(
      batch["index"], batch["image"], batch["text"], strict=True
    ):
      seen.setdefault(int(index), []).append((image.tobytes(), bytes(tokens)))
  images_of_0, texts_of_0 = zip(*seen[0], strict=True)
  assert len(set(images_of_0)) == len(images_of_0) >= 10
  assert len(set(texts_of_0)) == 2  # Both captions get their turn.


def test_captions_of_an_image_have_its_number(folder, views):
  """In a mixture too, where another source may have as many examples."""
  options = sources.Options(captions="all")
  every = sources.open_source("folder", "all", folder, options)
  mixed = Mixture(dict.fromkeys("ab", every), {"a": 1.0, "b": 2.0})
  for source, examples in ((every, 40), (mixed, 80)):
    batches = _batches(source, 6, views, batch_size=40)
    index, image_index = (
      _column(batches, "index"),
      _column(batches, "image_index"),
    )
    assert set(index) == set(range(examples)) - {22, 23, 62, 63}
    for number, first in zip(index, image_index, strict=True):
      # Two captions an image: the first of them is an even number.
      assert first == number // 2 * 2
      assert source[int(first)].image == source[int(number)].image
  one = sources.open_source("folder", "all", folder)
  (batch,) = _batches(one, 1, views, batch_size=40)
  np.testing.assert_array_equal(batch["image_index"], batch["index"])


def test_plain_squash_is_the_same_in_every_epoch(folder):
  source = sources.open_source("folder", "all", folder)
  views = Pixels(16), Tokens(text.make_tokenizer("bytes"), 12)
  batch = _batches(source, 1, views, batch_size=40)[0]
  assert batch["image"].shape == (40, 16, 16, 3)
  assert batch["image"].dtype == np.uint8
  assert batch["text"].shape == (40, 12) and batch["text"].dtype == np.int32
  for index, image in zip(batch["index"], batch["image"], strict=True):
    decoded = images.decode(source[int(index)].image)
    np.testing.assert_array_equal(image, images.resize(decoded, 16))


def test_both_decoders_cut_the_same_boxes(folder, views):
  """Pixels of JPEG's own scaling are close; everything drawn is equal."""
  source = sources.open_source("folder", "all", folder)
  fast = _batches(source, 3, views, decoder="fast")
  for exact, near in zip(_batches(source, 3, views), fast, strict=True):
    for key in ("index", "text", "faults", "skipped"):
      np.testing.assert_array_equal(near[key], exact[key])
    np.testing.assert_allclose(
      near["image"].astype(float), exact["image"], atol=100
    )
    assert np.abs(near["image"] - exact["image"].astype(float)).mean() < 12


def test_unreadable_image_is_replaced_counted_and_named(folder, views):
  source = sources.open_source("folder", "all", folder)
  (batch,) = _batches(source, 1, views, batch_size=20)
  assert batch["image"].shape == (20, 16, 16, 3)
  assert 11 not in batch["index"]
  assert batch["faults"].dtype == np.int32
  (row,), (kind,) = np.nonzero(batch["faults"])
  assert batch["faults"][row, kind] == 1
  assert faults.KINDS[kind] == "image"
  assert batch["skipped"].shape == (20, rows.MAX_SKIPS)
  numbers = batch["skipped"]["index"]
  np.testing.assert_array_equal(numbers[row], [11, -1, -1, -1])
  assert (np.delete(numbers, row, 0) == -1).all()
  (fault,) = faults.from_rows(batch["skipped"])
  assert fault.index == 11 and fault.kind == "image"
  assert fault.name == "11.jpg" and "truncated" in fault.reason


def test_all_skips_are_counted_even_those_not_named():
  source = Numbers(40, bad=tuple(range(30)))
  batches = _batches(source, 10)
  counts = _column(batches, "faults").sum(1)
  named = (_column(batches, "skipped")["index"] >= 0).sum(1)
  assert counts.max() > rows.MAX_SKIPS
  np.testing.assert_array_equal(named, np.minimum(counts, rows.MAX_SKIPS))
  assert _column(batches, "index").min() >= 30
  assert len(set(_column(batches, "index"))) == 10


@pytest.mark.parametrize("threads", [0, 4])
def test_nothing_readable_stops_with_a_name(threads):
  source = Numbers(5, bad=tuple(range(5)))
  with pytest.raises(RunStopped, match="16 examples .* none can be used.*numb"):
    _batches(source, 1, num_threads=threads)


def test_real_truncated_photo_is_skipped_among_good_ones(
  shared_data, tmp_path, views
):
  names = ["truncated_jpeg.jpg", "flower.jpg", "hopper_orientation_8.jpg"]
  for name in names:
    (tmp_path / name).symlink_to(shared_data / "tricky" / name)
  rows = "".join(f"{name},a caption\n" for name in names)
  (tmp_path / "captions.csv").write_text("image,caption\n" + rows)
  source = sources.open_source("folder", "all", str(tmp_path))
  batches = _batches(source, 3, views, batch_size=6)
  assert set(_column(batches, "index")) == {1, 2}
  skipped = faults.from_rows(_column(batches, "skipped"))
  assert {fault.index for fault in skipped} == {0}
  assert {fault.name for fault in skipped} == {"truncated_jpeg.jpg"}


FREED = threading.Event()  # Ends the waiting, so that the process can end.


@dataclasses.dataclass(frozen=True)
class Trap:
  """Example `index` waits until freed, or kills the process that reads it."""

  index: int
  how: str
  marker: str = ""  # A file: the process is killed once.
  class_names: None = None

  def __len__(self):
    return 24

  def __getitem__(self, index):
    if index == self.index and self.how == "stuck":
      FREED.wait()
    elif index == self.index and not os.path.exists(self.marker):
      if self.how == "once":
        pathlib.Path(self.marker).touch()
      os.kill(os.getpid(), signal.SIGKILL)
    return sources.Example(b"", (str(index),), f"number {index}")


def test_a_stuck_thread_is_noticed_and_named(caplog):
  batches = pipeline.train_batches(
    Trap(7, "stuck"),
    [_load_number],
    batch_size=8,
    seed=3,
    num_threads=2,
    stall_seconds=1.5,
  )
  FREED.clear()
  with pytest.raises(Stalled, match="no data for 1.5 seconds .*: example 7 of"):
    for _ in range(3):
      next(batches)
  batches.close()  # Does not wait for the thread that is stuck.
  FREED.set()
  assert "loading example 7 of the data for" in caplog.text


def test_any_length_of_patience_will_do():
  batches = pipeline.train_batches(
    Numbers(24), [_load_number], batch_size=8, seed=3, stall_seconds=np.inf
  )
  next(batches)
  batches.close()


def test_a_stuck_thread_ends_the_program_in_bounded_time():
  program = """
import big_siglip.errors, test_pipeline, big_siglip.data.pipeline as pipeline
with big_siglip.errors.exit_on_error():
  batches = pipeline.train_batches(
    test_pipeline.Trap(7, "stuck"), [test_pipeline._load_number], batch_size=8,
    seed=3, num_threads=2, stall_seconds=1)
  try:
    for _ in range(3): next(batches)
  finally:
    batches.close()
"""
  done = subprocess.run(
    [sys.executable, "-c", program],
    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    cwd=pathlib.Path(__file__).parent,
    capture_output=True,
    text=True,
    timeout=100,
  )
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith("error: no data for 1 seconds")
  assert "example 7" in done.stderr and "Traceback" not in done.stderr


def test_a_lost_worker_is_replaced_and_nothing_is_lost(tmp_path, caplog):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  marker = tmp_path / "killed"
  found = _batches(
    Trap(7, "once", str(marker)), 6, num_workers=1, stall_seconds=60
  )
  assert marker.exists() and "starting the workers again" in caplog.text
  _assert_equal(found, _batches(Numbers(24), 6))


def test_workers_do_not_outlive_a_process_that_is_killed(tmp_path):
  program = tmp_path / "program.py"
  program.write_text("""
import os, signal, sys
from absl import flags
import test_pipeline, big_siglip.data.pipeline as pipeline
if __name__ == "__main__":
  flags.FLAGS.mark_as_parsed()
  batches = pipeline.train_batches(
    test_pipeline.Trap(99, "never"), [test_pipeline._load_number], batch_size=8,
    seed=3, num_workers=1, num_threads=1)
  next(batches)
  os.kill(os.getpid(), signal.SIGKILL)
""")
  # Its workers hold the pipe of its output open.
  done = subprocess.run(
    [sys.executable, program],
    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    cwd=pathlib.Path(__file__).parent,
    capture_output=True,
    timeout=100,
  )
  assert done.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_workers_that_are_lost_each_time_end_the_run():
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  with pytest.raises(RunStopped, match="terminated unexpectedly .* 4th time"):
    _batches(Trap(7, "always"), 6, num_workers=1)


@pytest.mark.slow
def test_a_stuck_worker_process_is_noticed(capfd):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  batches = pipeline.train_batches(
    Trap(7, "stuck"),
    [_load_number],
    batch_size=8,
    seed=3,
    num_workers=2,
    num_threads=1,
    stall_seconds=20,
  )
  with pytest.raises(Stalled, match="a worker process is stuck; its warning"):
    for _ in range(3):
      next(batches)
  assert (
    "loading example 7 of the data for 10 seconds" in capfd.readouterr().err
  )
  for worker in multiprocessing.active_children():
    worker.kill()  # As `errors.leave` would.


def test_wrong_sizes_are_refused():
  cases = [
    (Numbers(0), {}, "empty"),
    (Numbers(5), dict(batch_size=9, process_count=2), "config.batch_size=9"),
    (Numbers(5), dict(batch_size=0), "config.batch_size=0"),
    (Numbers(5), dict(seed=-1), "config.seed=-1"),
    (Numbers(5), dict(process_index=2, process_count=2), "process 2 of 2"),
  ]
  for source, options, message in cases:
    with pytest.raises(ValueError, match=message):
      _batches(source, 1, **options)


def _load_one(index):
  if index == 4:
    raise images.BadImage("is bad")
  return {"x": np.full(2, index + 1, np.float32)}


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 8, 13])
def test_evaluation_sees_every_example_once_in_order(length, processes):
  shares = [
    list(
      pipeline.eval_batches(
        length,
        _load_one,
        batch_size=8,
        process_index=p,
        process_count=processes,
      )
    )
    for p in range(processes)
  ]
  rows, masks = [], []
  for parts in zip(*shares, strict=True):  # As many batches everywhere.
    for part in parts:
      assert part["x"].shape == (8 // processes, 2)
      assert part["mask"].dtype == bool
      rows.append(part["x"][:, 0])
      masks.append(part["mask"])
  rows, mask = np.concatenate(rows), np.concatenate(masks)
  expected = [i + 1 for i in range(length) if i != 4]
  np.testing.assert_array_equal(rows[mask], expected)
  assert not rows[~mask].any() and len(rows) == -(-length // 8) * 8


def test_the_order_is_that_of_grains_own_shuffle():
  for length, seed in ((1, 3), (7, 0), (384, 5), (70_000, 2**32 - 1)):
    draws = order.draws((length,), (100,), seed)
    shuffled = grain.MapDataset.range(length).seed(seed).shuffle().repeat()
    for place in (*range(0, 3 * length, max(1, length // 9)), 10**12 + 3):
      assert draws[place].index == shuffled[place]
      assert draws[place].epoch == place // length


def test_large_images_are_held_a_few_at_a_time(folder, views, monkeypatch):
  """And all of them where they are small: the batches are the same."""
  source = sources.open_source("folder", "all", folder)
  whole = _batches(source, 3, views, batch_size=20)
  held = []

  def counted(views, batch, examples, *rest, **options):
    held.append(len(examples))
    return view.fill(views, batch, examples, *rest, **options)

  monkeypatch.setattr(rows, "fill", counted)
  monkeypatch.setattr(rows, "_BYTES_AT_ONCE", 2_000)
  _assert_equal(_batches(source, 3, views, batch_size=20), whole)
  assert max(len(source[i].image) for i in range(20)) < 2_000 and max(held) > 1
  assert max(held) < 8


def test_nothing_is_held_once_it_is_closed():
  """What worker processes made lies in shared memory until then."""
  made = []

  class Items:
    def __next__(self):
      batch = np.zeros(3)
      made.append(weakref.ref(batch))
      return batch

    def close(self):
      pass

  delivery = Prefetcher(Items())
  while len(made) < 2:  # One lies in the queue, and one waits for its place.
    time.sleep(0.001)
  delivery.close()
  gc.collect()
  assert [batch() for batch in made] == [None] * len(made)
