"""Folders of embeddings that grow: new, changed, moved, gone and killed."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
from PIL import Image
import programs
import pyarrow as pa
from pyarrow import dataset
import pyarrow.parquet as pq
import pytest
import runs
from test_embed import contents, embed, make_model

import big_siglip
from big_siglip import embeddings
from big_siglip.data.sources import open_source, Options
from big_siglip.embeddings import description as descriptions
from big_siglip.embeddings import folder as folders
from big_siglip.embeddings import index
from big_siglip.embeddings.pipeline import embed_missing
from big_siglip.embeddings.update import Update

SIZES = ["--shard_size=4", "--batch_size=4"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  return make_model(tmp_path_factory.mktemp("model") / "m")


def write_photo(file, seed, size=(20, 30)):
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  file.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(file)


def make_photos(folder, count=10):
  for number in range(count):
    write_photo(folder / f"{number}.png", number)
  (folder / "bad.png").write_text("no image")
  return folder


def rows_of(folder):
  """Returns {key: row} as plain readers see it; no key stands twice."""
  rows = dataset.dataset(folder, format="parquet").to_table().to_pylist()
  assert len({row["key"] for row in rows}) == len(rows)
  assert len({row["id"] for row in rows}) == len(rows)
  return {row["key"]: row for row in rows}


def assert_is_of(folder, checkpoint, photos):
  """The folder holds what the model says of the photos of now."""
  rows = rows_of(folder)
  there = sorted(
    p.relative_to(photos).as_posix() for p in photos.rglob("*.png")
  )
  assert sorted(rows) == [key for key in there if "bad" not in key]
  expected = big_siglip.load(checkpoint).embed_images(
    [photos / key for key in rows]
  )
  found = np.array([row["embedding"] for row in rows.values()])
  np.testing.assert_allclose(found, expected, atol=1e-6)
  reader = embeddings.Reader(folder)
  assert reader.is_whole
  assert sorted(reader.keys()) == sorted(rows)
  return rows


def stats(folder):
  """Returns what tells whether a shard was written again."""
  files = folder.glob("shard-*.parquet")
  return {f.name: (f.stat().st_ino, f.stat().st_mtime_ns) for f in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoint):
  """(photos, their embeddings), to be copied."""
  folder = tmp_path_factory.mktemp("made")
  photos = make_photos(folder / "photos")
  embed(checkpoint, folder / "out", f"--images={photos}", *SIZES)
  return folder


@pytest.fixture
def copy(made, tmp_path):
  shutil.copytree(made, tmp_path, dirs_exist_ok=True)
  return tmp_path / "photos", tmp_path / "out"


def test_new_changed_moved_and_gone(copy, checkpoint):
  photos, output = copy
  before, old = stats(output), rows_of(output)
  write_photo(photos / "new.png", 100, (40, 25))  # After 9 and bad: 3 shards.
  write_photo(photos / "5.png", 101)  # In the second.
  (photos / "6.png").rename(photos / "moved.png")
  (photos / "7.png").unlink()
  answer = embed(checkpoint, output, f"--images={photos}", "--update")
  assert {k: answer[k] for k in ("added", "changed", "removed", "same")} == {
    "added": 2,
    "changed": 1,
    "removed": 2,
    "same": 8,
  }
  assert (answer["rows"], answer["skipped"]) == (10, 1)
  assert answer["embedded_now"] == 2, "what moved is known by its bytes"
  rows = assert_is_of(output, checkpoint, photos)
  after = stats(output)
  assert after["shard-000000.parquet"] == before["shard-000000.parquet"]
  assert after["shard-000001.parquet"] != before["shard-000001.parquet"]
  same = [key for key in old if key in rows and key != "5.png"]
  assert {key: rows[key] for key in same} == {key: old[key] for key in same}
  ids = {rows[key]["id"] for key in ("5.png", "moved.png", "new.png")}
  assert ids.isdisjoint({row["id"] for row in old.values()})
  assert (rows["new.png"]["width"], rows["new.png"]["height"]) == (25, 40)
  assert rows["moved.png"]["sha256"] == old["6.png"]["sha256"]
  skipped = (output / "_skipped.jsonl").read_text()
  assert [json.loads(line)["path"] for line in skipped.splitlines()] == [
    "bad.png"
  ]


def test_nothing_changed_writes_nothing(copy, checkpoint):
  photos, output = copy
  before = stats(output)
  answer = embed(checkpoint, output, f"--images={photos}", "--update")
  assert (answer["same"], answer["embedded_now"]) == (11, 0)
  old = contents(output)  # They were moved, which is noted.
  # Other times, the same bytes: told by their hash, and nothing is written.
  for file in photos.iterdir():
    os.utime(file, ns=(1, 1))
  answer = embed(checkpoint, output, f"--images={photos}", "--update")
  assert (answer["same"], answer["changed"]) == (11, 0)
  assert stats(output) == before
  assert contents(output) == old
  # The same length and another time: the bytes decide.
  data = bytearray((photos / "bad.png").read_bytes())
  (photos / "bad.png").write_bytes(data[::-1])
  answer = embed(checkpoint, output, f"--images={photos}", "--update")
  assert (answer["same"], answer["changed"]) == (10, 1)


def test_update_after_update_then_plain(copy, checkpoint):
  photos, output = copy
  images = f"--images={photos}"
  for number in range(10, 16):
    write_photo(photos / f"{number}.png", number)
    embed(checkpoint, output, images, "--update")
  for number in (0, 1, 2, 3):
    (photos / f"{number}.png").unlink()
  embed(checkpoint, output, images, "--update")
  assert_is_of(output, checkpoint, photos)
  # One at a time they have filled shards: no more than are needed, and one.
  assert len(stats(output)) <= 4
  before = stats(output)
  answer = embed(checkpoint, output, images)  # Finds all there.
  assert (answer["rows"], answer["embedded_now"]) == (12, 0)
  (output / "shard-000001.parquet").unlink()
  flags = [f"--checkpoint={checkpoint}", f"--output={output}", images]
  status, _, said = programs.call("tools/embed.py", *flags)
  assert status == 2
  assert "is missing; --update makes its rows again" in said
  embed(checkpoint, output, images, "--update")
  assert_is_of(output, checkpoint, photos)
  assert stats(output) != before


def test_update_of_an_unfinished_and_of_no_folder(copy, checkpoint, tmp_path):
  photos, output = copy
  (output / "shard-000001.parquet").unlink()
  answer = embed(checkpoint, output, f"--images={photos}", "--update")
  assert (answer["added"], answer["same"]) == (4, 7)
  assert_is_of(output, checkpoint, photos)
  fresh = tmp_path / "fresh"
  embed(checkpoint, fresh, f"--images={photos}", "--update", *SIZES)
  assert_is_of(fresh, checkpoint, photos)


def _update_until(output, stop, checkpoint, photos):
  """Runs an update in which `stop` is called before each shard is written."""
  model = big_siglip.load(checkpoint)
  inputs = embeddings.read_images(str(photos))
  made = descriptions.describe(
    inputs, embeddings.describe_model(model, checkpoint), "float32", 4
  )
  with folders.writing(output):
    found = Update(output, made, inputs, 2)
    for number, rows in found.shards.items():
      stop()
      embed_missing(
        found,
        model,
        inputs,
        {number: rows},
        batch_size=4,
        num_threads=2,
        progress=lambda count: None,
        before=found.before,
      )
    stop()
    found.commit()


class _Killed(Exception):
  pass


@pytest.mark.parametrize(
  "after,more,left", [(1, False, 2), (1, True, 3), (2, False, 0)]
)
def test_stopped_before_the_end_it_is_the_old_one(
  copy, checkpoint, after, more, left
):
  photos, output = copy
  old = rows_of(output)
  write_photo(photos / "1.png", 50)
  write_photo(photos / "8.png", 51)
  write_photo(photos / "x.png", 52)
  calls = []

  def stop():
    calls.append(1)
    if len(calls) > after:
      raise _Killed

  with pytest.raises(_Killed):
    _update_until(output, stop, checkpoint, photos)
  assert rows_of(output) == old
  assert sorted(embeddings.Reader(output).keys()) == sorted(old)
  assert len(list(output.glob(".shard-*"))) == after
  # Other files change meanwhile: what is embedded is found by its bytes.
  if more:
    write_photo(photos / "y.png", 53)
  answer = embed(checkpoint, output, f"--images={photos}", "--update")
  assert answer["embedded_now"] == left
  assert_is_of(output, checkpoint, photos)
  assert not list(output.glob(".shard-*"))


def test_stopped_while_names_are_given_it_is_the_new_one(
  copy, checkpoint, monkeypatch
):
  photos, output = copy
  write_photo(photos / "1.png", 50)
  write_photo(photos / "8.png", 51)
  (photos / "9.png").unlink()
  replace, count = pathlib.Path.replace, [0]

  def stops(self, target):
    if ".parquet." in self.name and not self.name.endswith(".partial"):
      count[0] += 1
      if count[0] == 2:
        raise _Killed
    return replace(self, target)

  with monkeypatch.context() as patched:
    patched.setattr(pathlib.Path, "replace", stops)
    with pytest.raises(_Killed):
      _update_until(output, lambda: None, checkpoint, photos)
  assert list(output.glob(".shard-*"))
  reader = embeddings.Reader(output)
  keys = sorted(p.name for p in photos.glob("[0-9]*.png"))
  assert sorted(reader.keys()) == keys
  rows = np.concatenate(list(reader.blocks(3)))
  expected = big_siglip.load(checkpoint).embed_images(
    [photos / key for key, _ in reader.rows(range(reader.num_rows))]
  )
  np.testing.assert_allclose(rows, expected, atol=1e-6)
  # Whatever writes there next ends it.
  answer = embed(checkpoint, output, f"--images={photos}")
  assert answer["embedded_now"] == 0
  assert_is_of(output, checkpoint, photos)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_the_same(tmp_path, checkpoint):
  photos = make_photos(tmp_path / "photos", 300)
  output, whole = tmp_path / "out", tmp_path / "whole"
  embed(checkpoint, output, f"--images={photos}", "--shard_size=10")
  for number in range(0, 300, 3):
    write_photo(photos / f"{number}.png", 1000 + number)
  for number in range(300, 330):
    write_photo(photos / f"{number}.png", number)
  flags = [f"--checkpoint={checkpoint}", f"--images={photos}", "--update"]
  old = rows_of(output)
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(jax.device_count())}
  for enough in (1, 10, 25):
    process = subprocess.Popen(
      [sys.executable, "tools/embed.py", f"--output={output}", *flags],
      cwd=runs.ROOT,
      env=environment,
    )
    while process.poll() is None:
      if len(list(output.glob(".shard-*"))) >= enough:
        process.send_signal(signal.SIGKILL)
        break
      time.sleep(0.002)
    assert process.wait() == -signal.SIGKILL
    assert rows_of(output) == old
  embed(checkpoint, output, f"--images={photos}", "--update")
  assert_is_of(output, checkpoint, photos)
  embed(checkpoint, whole, f"--images={photos}", "--shard_size=10")
  strip = ("id", "file_mtime_ns")
  kept = {
    folder: {
      key: {k: v for k, v in row.items() if k not in strip}
      for key, row in rows_of(folder).items()
    }
    for folder in (output, whole)
  }
  assert kept[output].keys() == kept[whole].keys()
  for key, row in kept[whole].items():
    found = dict(kept[output][key])
    np.testing.assert_allclose(
      found.pop("embedding"), row.pop("embedding"), atol=1e-6
    )
    assert found == row


def test_a_folder_of_before_is_embedded_again(copy, checkpoint):
  """Its rows have no ids, sizes or hashes, and its description no columns."""
  photos, output = copy
  for file in output.glob("shard-*.parquet"):
    table = pq.read_table(file)
    pq.write_table(table.select(["key", "text", "embedding"]), file)
  described = json.loads((output / "_embedding.json").read_text())
  for name in ("columns", "numbers", "next_id", "update"):
    described.pop(name)
  (output / "_embedding.json").write_text(json.dumps(described))
  reader = embeddings.Reader(output)
  assert reader.ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
  # It is gone on with as it is.
  (output / "shard-000001.parquet").unlink()
  embed(checkpoint, output, f"--images={photos}", *SIZES)
  table = pq.read_table(output)
  assert table.column_names == ["key", "text", "embedding"]
  answer = embed(checkpoint, output, f"--images={photos}", "--update")
  assert (answer["changed"], answer["same"]) == (10, 1)
  assert_is_of(output, checkpoint, photos)


def test_texts_and_what_a_table_says_of_them(tmp_path, checkpoint):
  table, output = tmp_path / "texts.csv", tmp_path / "out"
  table.write_text("text,stars\nred,1\n,2\ngreen,3\nblue,\n")
  embed(checkpoint, output, f"--texts={table}", *SIZES)
  rows = rows_of(output)
  assert {k: (r["text"], r["stars"]) for k, r in rows.items()} == {
    "2": ("red", 1),
    "4": ("green", 3),
    "5": ("blue", None),
  }
  # A line more at the top: each has another key, and none is embedded again.
  table.write_text("text,stars\nwhite,9\nred,1\n,2\ngreen,4\nblue,\n")
  answer = embed(checkpoint, output, f"--texts={table}", "--update")
  assert answer["embedded_now"] == 1
  assert (answer["rows"], answer["skipped"]) == (4, 1)
  new = rows_of(output)
  assert new["6"]["embedding"] == rows["5"]["embedding"]
  assert new["5"]["stars"] == 4
  # Another value beside a text that stays: written, and not embedded.
  table.write_text("text,stars\nwhite,9\nred,7\n,2\ngreen,4\nblue,\n")
  answer = embed(checkpoint, output, f"--texts={table}", "--update")
  assert (answer["same"], answer["embedded_now"]) == (5, 0)
  assert rows_of(output)["3"]["stars"] == 7
  # Another column.
  table.write_text("text,mark\nwhite,a\nred,b\n,c\ngreen,d\nblue,e\n")
  answer = embed(checkpoint, output, f"--texts={table}", "--update")
  assert (answer["same"], answer["embedded_now"]) == (5, 0)
  assert {r["mark"] for r in rows_of(output).values()} == set("abde")


def test_columns_of_a_table_of_images(tmp_path, checkpoint):
  photos = make_photos(tmp_path / "photos", 3)
  table = tmp_path / "list.jsonl"
  lines = [
    dict(image=f"photos/{i}.png", caption=f"photo {i}", id=7, tags=["a", i])
    | dict(price=i / 2, good=i > 0, code=f"0{i}", width="wide", text="other")
    for i in range(3)
  ]
  lines.append(dict(lines[0], caption="twice"))
  table.write_text("\n".join(json.dumps(line) for line in lines))
  output = tmp_path / "out"
  embed(checkpoint, output, f"--images={table}")
  schema = pq.read_schema(next(output.glob("shard-*.parquet")))
  types = {name: str(schema.field(name).type) for name in schema.names}
  assert types == {
    "key": "string",
    "text": "string",
    "embedding": "fixed_size_list<element: float>[32]",
    "id": "int64",
    "width": "string",
    "height": "int32",
    "tags": "string",
    "price": "double",
    "good": "bool",
    "code": "string",
    "file_bytes": "int64",
    "file_mtime_ns": "int64",
    "sha256": "string",
  }
  row = rows_of(output)["photos/1.png"]
  assert (row["text"], row["price"], row["good"]) == ("photo 1", 0.5, True)
  assert (row["code"], row["tags"], row["id"]) == ("01", '["a", 1]', 1)
  assert (row["width"], row["height"]) == ("wide", 20)
  assert photos


def test_a_data_set_that_grows(tmp_path, checkpoint):
  photos = make_photos(tmp_path / "photos", 6)
  data = [(photos / f"{i}.png").read_bytes() for i in range(6)]

  def write(images):
    column = pa.array([{"bytes": b, "path": None} for b in images])
    pq.write_table(pa.table({"image": column}), tmp_path / "data.parquet")

  write(data[:4])
  images = f"--images={tmp_path}/data.parquet"
  output = tmp_path / "out"
  embed(checkpoint, output, images, *SIZES)
  old = rows_of(output)
  write([data[0], data[5], data[2], b"broken", data[4]])
  answer = embed(checkpoint, output, images, "--update")
  assert answer["embedded_now"] == 2
  assert (answer["rows"], answer["skipped"]) == (4, 1)
  new = rows_of(output)
  keys = sorted(old)
  assert new[keys[0]] == old[keys[0]]
  assert new[keys[2]] == old[keys[2]]
  expected = big_siglip.load(checkpoint).embed_images([data[5]])
  np.testing.assert_allclose([new[keys[1]]["embedding"]], expected, atol=1e-6)


def test_mistakes_of_an_update(copy, checkpoint, tmp_path):
  photos, output = copy
  before = contents(output)
  flags = [f"--checkpoint={checkpoint}", f"--output={output}", "--update"]
  others = make_photos(tmp_path / "others")
  for file in others.glob("*.png"):
    file.rename(file.with_name(f"other {file.name}"))
  (tmp_path / "texts.txt").write_text("a text")
  model = make_model(tmp_path / "other", seed=1)
  for arguments, said in [
    ([f"--images={others}"], "has none of the 11 images of"),
    ([f"--texts={tmp_path}/texts.txt"], "kind=images, now texts"),
    ([f"--images={photos}", "--dtype=float16"], "dtype=float32, now float16"),
    ([f"--images={photos}", "--shard_size=9"], "shard_size=4, now 9"),
    ([f"--images={photos}", f"--checkpoint={model}"], "other parameters"),
  ]:
    status, _, found = programs.call("tools/embed.py", *flags, *arguments)
    assert status == 2
    assert said in found.strip().splitlines()[-1]
    assert contents(output) == before


def test_what_is_trained_on_follows(copy, checkpoint):
  photos, output = copy
  lines = [f"{number}.png,photo {number}" for number in range(10)]
  (output / "captions.csv").write_text("\n".join(["image,caption", *lines]))
  source = open_source("embeddings", "all", str(output), Options())
  reader = embeddings.Reader(output)
  write_photo(photos / "2.png", 60)
  (photos / "4.png").unlink()
  embed(checkpoint, output, f"--images={photos}", "--update")
  assert not reader.is_current
  assert embeddings.Reader(output).is_current
  new = open_source("embeddings", "all", str(output), Options())
  before = {one.name: one.image for one in map(source.__getitem__, range(10))}
  after = {one.name: one.image for one in map(new.__getitem__, range(9))}
  assert sorted(after) == sorted(before.keys() - {"4.png"})
  (output / "captions.csv").unlink()  # It is no Parquet.
  rows = rows_of(output)
  for name, row in after.items():
    np.testing.assert_array_equal(row, np.float32(rows[name]["embedding"]))
    assert np.array_equal(row, before[name]) == (name != "2.png")
  assert len(list(output.glob(".rows-*.npy"))) == 1


def test_pandas_pyarrow_and_duckdb_read_it_as_it_is(copy, checkpoint):
  """As docs/embeddings.md says, after an update, with an index beside it."""
  duckdb, pandas = map(pytest.importorskip, ("duckdb", "pandas"))
  pytest.importorskip("lancedb")
  photos, output = copy
  (photos / "4.png").unlink()
  write_photo(photos / "wide.png", 70, (20, 90))
  embed(checkpoint, output, f"--images={photos}", "--update")
  index.open_index(embeddings.Reader(output), index.Choice("lancedb"))
  (output / ".shard-000000.parquet.0123456789abcdef").write_text("half of one")
  expected = assert_is_of(output, checkpoint, photos)

  table = dataset.dataset(output).to_table(
    columns=["key", "embedding"], filter=dataset.field("width") > 80
  )
  assert table["key"].to_pylist() == ["wide.png"]

  frame = pandas.read_parquet(output)
  assert sorted(frame["key"]) == sorted(expected)
  rows = np.stack(frame["embedding"])
  assert (rows.shape, rows.dtype) == ((10, 32), np.float32)
  query = np.float32(expected["wide.png"]["embedding"])
  best = frame.assign(score=rows @ query).nlargest(3, "score")
  assert best["key"].iloc[0] == "wide.png"

  found = duckdb.execute(
    "select key, array_cosine_similarity(embedding::float[32], ?::float[32])"
    f" as score from '{output}/*.parquet' order by score desc limit 3",
    [query],
  ).fetchall()
  assert [key for key, _ in found] == best["key"].to_list()
  np.testing.assert_allclose(
    [score for _, score in found], best["score"], atol=1e-6
  )
