"""What a run leaves out is counted, listed once, and limited."""

import dataclasses
import itertools
import json
import pathlib
import tarfile

from etils import epath
import format_cases
import loading
import numpy as np
import pytest
import runs

from big_siglip.data import faults, mixture, pipeline, sources
from big_siglip.data.faults import COUNTERS, Fault
from big_siglip.errors import RunStopped
from big_siglip.metrics import read_metrics
from big_siglip.run.skipped import Skipped


class Photos(list):
  """A source of which a shard was missing when it was opened."""

  class_names = None
  faults = (Fault(-1, "missing", "7.tar", "no such file"),)


def _skipped(folder, start_step=0, counts=None, max_share=1.0, data=()):
  return Skipped(
    epath.Path(folder),
    "photos",
    data,
    max_share=max_share,
    start_step=start_step,
    counts=counts or {},
  )


def _counters(**kinds):
  return np.array([kinds.get(name, 0) for name in COUNTERS])


def _lines(folder):
  text = (pathlib.Path(folder) / "skipped.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_names_of_any_bytes_travel_with_a_batch():
  name = b"a.tar#\xff\xfe".decode("utf-8", "surrogateescape")
  rows = faults.as_rows([([Fault(3, "image", name, "is no image")], 0)], 2)
  (fault,) = faults.from_rows(rows["skipped"])
  assert fault.name == "a.tar#\\udcff\\udcfe"


ONE = Fault(3, "image", "three.jpg", "is no image")
TWO = Fault(9, "caption", "nine.jpg", "is empty")


def test_names_that_are_no_unicode_are_listed(tmp_path):
  shard = Fault(-1, "missing", "caf\udce9.tar", "no such file")
  data = Photos()
  data.faults = (shard,)
  _skipped(tmp_path, data=data)
  assert _lines(tmp_path)[0]["name"] == shard.name


def test_each_is_listed_once_with_its_place_and_reason(tmp_path, caplog):
  skipped = _skipped(tmp_path)
  for step in (1, 2):
    skipped.name([ONE], step)
    skipped.count(_counters(image=1), 8 * step)
    skipped.write()
  skipped.name([TWO], 3)
  skipped.count(_counters(caption=2, retried=4), 24)
  skipped.write()
  assert _lines(tmp_path) == [
    {
      "step": 1,
      "source": "photos",
      "index": 3,
      "kind": "image",
      "name": "three.jpg",
      "reason": "is no image",
    },
    {
      "step": 3,
      "source": "photos",
      "index": 9,
      "kind": "caption",
      "name": "nine.jpg",
      "reason": "is empty",
    },
  ]
  assert skipped.metrics() == {
    "skipped_examples": 4,
    "skipped/image": 2,
    "skipped/caption": 2,
    "retried_reads": 4,
  }
  assert caplog.text.count("three.jpg: is no image (image)") == 1


def test_a_run_that_goes_on_loses_and_doubles_nothing(tmp_path):
  first = _skipped(tmp_path, data=Photos())
  first.name([ONE], 2)
  first.count(_counters(image=1), 16)
  saved = first.counts()
  first.name([TWO], 5)  # Killed after step 6; step 4 was saved.
  first.count(_counters(caption=1), 40)
  first.write()
  with (tmp_path / "skipped.jsonl").open("a") as file:
    file.write('{"step": 6, "sour')
  again = _skipped(tmp_path, 4, saved, data=Photos())
  assert [line["name"] for line in _lines(tmp_path)] == ["7.tar", "three.jpg"]
  again.name([ONE, TWO], 5)
  again.count(_counters(caption=1, image=1), 40)
  again.write()
  names = [line["name"] for line in _lines(tmp_path)]
  assert names == ["7.tar", "three.jpg", "nine.jpg"]
  assert again.metrics()["skipped_examples"] == 3


def test_too_large_a_share_stops_and_is_listed(tmp_path):
  skipped = _skipped(tmp_path, max_share=0.01)
  skipped.name([ONE], 1)
  skipped.count(_counters(image=10), 100)  # Of the first 1,000: still right.
  with pytest.raises(RunStopped) as stop:
    skipped.count(_counters(missing=1), 200)
  assert "11 of 211 examples cannot be used (image 10, missing 1)" in str(
    stop.value
  )
  assert "config.data.max_skipped=0.01" in str(stop.value)
  assert "\n" not in str(stop.value)
  assert len(_lines(tmp_path)) == 1
  later = _skipped(tmp_path / "new", max_share=0.01)
  later.count(_counters(image=100), 10_000)
  with pytest.raises(RunStopped):
    later.count(_counters(image=10), 10_200)


def test_retries_do_not_count_as_skipped(tmp_path):
  skipped = _skipped(tmp_path, max_share=0.0)
  skipped.count(_counters(retried=1_000), 8)
  skipped.write()
  assert not (tmp_path / "skipped.jsonl").exists()


def test_shards_of_a_mixture_are_listed_by_its_sources(tmp_path):
  good = sources.Example(b"", ("x",), "x")
  left = mixture.Subset(Photos([good] * 9), np.array([2, 4, 8]))
  both = mixture.Mixture(
    {"b": Photos([good] * 5), "a": left}, {"a": None, "b": None}
  )
  skipped = _skipped(tmp_path, data=both)
  skipped.name([dataclasses.replace(ONE, index=i) for i in (1, 3)], 1)
  skipped.count(_counters(image=2), 8)
  skipped.write()
  assert [(line["source"], line["index"]) for line in _lines(tmp_path)] == [
    ("a", -1),
    ("b", -1),
    ("a", 4),
    ("b", 0),
  ]


@pytest.mark.torch
@pytest.mark.slow
def test_two_processes_list_what_one_would_skip(tmp_path):
  images = format_cases.photos()
  images["00004"] = images["00004"][0][:200], images["00004"][1]
  images["00021"] = images["00021"][0], [" "]
  folder = pathlib.Path(format_cases.write_tar(tmp_path / "tar", images))
  with tarfile.open(folder / "00002.tar") as tar:
    last = tar.getmembers()[-1]
  data = (folder / "00002.tar").read_bytes()
  (folder / "00002.tar").write_bytes(data[: last.offset_data + 1])
  changes = dict(
    data__name="tar",
    data__split="all",
    data__path=f"{folder}/{{00000..00003}}.tar",  # The last one is missing.
    data__max_skipped=0.5,
    total_steps=6,
    checkpoint__every=3,
  )
  workdir = tmp_path / "run"
  processes = runs.start_several(workdir, count=2, devices=2, **changes)
  for process in processes:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
  config = runs.config(**changes)
  options = sources.Options.of(config.data)
  source = sources.open_source("tar", "all", config.data.path, options)
  batches = pipeline.train_batches(
    source,
    [loading.OneByOne(lambda example, rng: _decoded(example), {"n": "int64"})],
    batch_size=16,
    seed=config.seed,
    num_threads=0,
  )
  expected, total = {}, 0
  for step, batch in enumerate(itertools.islice(batches, 6), 1):
    total += int(batch["faults"].sum())
    for fault in faults.from_rows(batch["skipped"]):
      expected.setdefault(fault.index, (step, fault.kind))
  batches.close()
  lines = _lines(workdir)
  shards = [line for line in lines if line["index"] < 0]
  assert [line["kind"] for line in shards] == ["record", "missing"]
  found = {
    line["index"]: (line["step"], line["kind"])
    for line in lines
    if line["index"] >= 0
  }
  assert found == expected and len(lines) == len(found) + 2
  assert {kind for _, kind in found.values()} == {"image", "caption", "record"}
  counts = [m.get("skipped_examples", 0) for m in read_metrics(workdir)]
  assert max(counts) == total


def _decoded(example):
  from big_siglip.data import images

  images.decode(example.image)
  return {}
