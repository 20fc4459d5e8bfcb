"""Embeddings of many files: made, killed, made on, searched."""

import dataclasses
import importlib.util
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import time

import format_cases
import jax
import jax.numpy as jnp
import model_cases
import numpy as np
from PIL import Image
import programs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs

import big_siglip
from big_siglip import embeddings
from big_siglip.embeddings import datasets, index
from big_siglip.embeddings import description as descriptions
from big_siglip.embeddings.pipeline import embed_missing
from big_siglip.embeddings.search import search_exactly
from big_siglip.errors import UserError
from big_siglip.models import SigLIP

WIDTH = 32
DATA = dict(
  tokenizer="bytes", lowercase=True, clean="none", pad_id=1, resize="bilinear"
)
TEXTS = ["a dog", "", "two red circles", "Ünïcode, with a comma", "x" * 99]


def make_model(folder, seed=0, data=DATA, **fields):
  model = model_cases.model_config(
    text=dict(vocab_size=259, length=16), **{"embed_dim": WIDTH, **fields}
  )
  params = jax.device_put(model_cases.random_params(SigLIP(model), seed))
  model_cases.save_model(folder, params, model, data)
  return str(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  return make_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """A folder in a folder, 23 images, two files that only pretend to be some."""
  folder = tmp_path_factory.mktemp("photos")
  (folder / "b" / "deep").mkdir(parents=True)
  rng = np.random.default_rng(0)
  for number in range(23):
    pixels = rng.integers(0, 256, (20 + number, 30, 3), np.uint8)
    below = ("", "b", "b/deep")[number % 3]
    Image.fromarray(pixels).save(folder / below / f"{number:02}.png")
  (folder / "05 text.jpg").write_text("this is no image")
  (folder / "b" / "zz cut.png").write_bytes(
    (folder / "00.png").read_bytes()[:300]
  )
  (folder / "notes.txt").write_text("not an image by its name")
  return folder


def embed(checkpoint, output, *arguments, run=programs.call):
  """Returns what --json says."""
  status, printed, said = run(
    "tools/embed.py",
    f"--checkpoint={checkpoint}",
    f"--output={output}",
    "--json",
    *arguments,
  )
  assert status == 0, said
  return json.loads(printed)


def read(folder):
  """Returns (keys, texts, embeddings) of all shards."""
  tables = [pq.read_table(f) for f in sorted(folder.glob("shard-*.parquet"))]
  columns = {
    name: [value for t in tables for value in t[name].to_pylist()]
    for name in ("key", "text", "embedding")
  }
  assert all(
    t.schema.field("embedding").type.list_size == WIDTH for t in tables
  )
  return columns["key"], columns["text"], np.array(columns["embedding"])


def contents(folder):
  """Returns {name: bytes} of all that is kept."""
  files = sorted(f for f in folder.iterdir() if f.name != ".lock")
  return {file.name: file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def vectors(tmp_path_factory, checkpoint, photos):
  """The photos' embeddings, in shards of 10."""
  folder = tmp_path_factory.mktemp("vectors") / "of photos"
  sizes = ["--shard_size=10", "--batch_size=4"]
  answer = embed(
    checkpoint, folder, f"--images={photos}", *sizes, run=programs.start
  )
  assert (answer["rows"], answer["skipped"]) == (23, 2)
  assert answer["embedded_now"] == 23
  assert answer["per_second"] > 0
  return folder


def test_images_equal_those_of_the_model(vectors, checkpoint, photos):
  keys, texts, rows = read(vectors)
  assert keys == sorted(keys)
  found = sorted(photos.rglob("*.png"), key=str)
  found = sorted(f.relative_to(photos).as_posix() for f in found)
  assert keys == [key for key in found if "cut" not in key]
  assert texts == [None] * 23
  model = big_siglip.load(checkpoint)
  expected = model.embed_images([photos / key for key in keys])
  np.testing.assert_allclose(rows, expected, atol=1e-6)
  counts = [pq.read_metadata(f).num_rows for f in sorted(vectors.glob("s*.p*"))]
  assert counts == [9, 10, 4]


def test_what_cannot_be_read_is_listed_once(vectors, checkpoint, photos):
  lines = (vectors / "_skipped.jsonl").read_text().splitlines()
  assert [json.loads(line)["path"] for line in lines] == [
    "05 text.jpg",
    "b/zz cut.png",
  ]
  assert json.loads(lines[0])["reason"] == "is no image of a known format"
  before = contents(vectors)
  again = embed(checkpoint, vectors, f"--images={photos}", "--shard_size=10")
  assert (again["rows"], again["skipped"], again["embedded_now"]) == (23, 2, 0)
  assert contents(vectors) == before


def test_real_photos_in_a_list(tmp_path, checkpoint, shared_data):
  photos = sorted((shared_data / "photos").glob("*.jpg"))[:5]
  lines = ["image,caption"]
  lines += [f"{file},of {file.stem}" for file in [*photos, photos[0]]]
  (tmp_path / "list.csv").write_text("\n".join([*lines, "nowhere.jpg,lost"]))
  output = tmp_path / "out"
  images = f"--images={tmp_path}/list.csv"
  answer = embed(checkpoint, output, images, "--dtype=float16")
  assert (answer["rows"], answer["skipped"]) == (5, 1)
  keys, _, rows = read(output)
  assert keys == [str(file) for file in photos]
  expected = big_siglip.load(checkpoint).embed_images(photos)
  np.testing.assert_allclose(rows, expected, atol=1e-3)
  skipped = json.loads((output / "_skipped.jsonl").read_text())
  assert skipped["reason"] == "No such file or directory"


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_texts_equal_those_of_the_model(tmp_path, checkpoint, suffix):
  file = tmp_path / f"texts{suffix}"
  lines, arguments, first = TEXTS, [], 1
  if suffix == ".csv":
    lines = ["id,words", *(f'{i},"{text}"' for i, text in enumerate(TEXTS))]
    arguments, first = ["--column=words"], 2
  file.write_text("\n".join(lines) + "\n")
  answer = embed(checkpoint, tmp_path / "out", f"--texts={file}", *arguments)
  assert (answer["rows"], answer["skipped"]) == (4, 1)
  keys, texts, rows = read(tmp_path / "out")
  assert texts == [text for text in TEXTS if text]
  assert keys == [str(first + i) for i, text in enumerate(TEXTS) if text]
  expected = big_siglip.load(checkpoint).embed_texts(texts)
  np.testing.assert_allclose(rows, expected, atol=1e-6)
  skipped = json.loads((tmp_path / "out" / "_skipped.jsonl").read_text())
  assert skipped == {"line": str(first + 1), "reason": "is empty"}


def test_killed_half_way_and_started_again_ends_the_same(tmp_path, checkpoint):
  photos = tmp_path / "photos"
  photos.mkdir()
  rng = np.random.default_rng(0)
  for number in range(300):
    pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(photos / f"{number:03}.png")
    if number % 50 == 7:
      (photos / f"{number:03}.png").write_text("no image")
  arguments = [f"--images={photos}", "--shard_size=7", "--batch_size=3"]
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  embed(checkpoint, whole, *arguments)
  for enough in (3, 20):
    _kill_when(killed, enough, checkpoint, arguments)
    before = len(list(killed.glob("shard-*.parquet")))
    assert enough <= before < 43
  answer = embed(checkpoint, killed, *arguments)
  assert answer["rows"] == 294
  assert answer["skipped"] == 6
  assert 0 < answer["embedded_now"] < 294
  assert contents(killed) == contents(whole)


def _kill_when(output, enough, checkpoint, arguments):
  flags = [f"--checkpoint={checkpoint}", f"--output={output}", *arguments]
  process = subprocess.Popen(
    [sys.executable, "tools/embed.py", *flags],
    cwd=runs.ROOT,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": str(jax.device_count())},
  )
  while process.poll() is None:
    if len(list(output.glob("shard-*.parquet"))) >= enough:
      process.send_signal(signal.SIGKILL)
      break
    time.sleep(0.002)
  assert process.wait() == -signal.SIGKILL


def test_what_a_kill_may_leave_behind_is_made_good(
  tmp_path, vectors, checkpoint, photos
):
  """A shard half written; a list of skipped that lags behind its shard."""
  output = tmp_path / "out"
  sizes = ["--shard_size=10", "--batch_size=4"]
  embed(checkpoint, output, f"--images={photos}", *sizes)
  (output / "shard-000001.parquet").rename(
    output / ".shard-000001.parquet.partial"
  )
  (output / "_skipped.jsonl").unlink()
  answer = embed(checkpoint, output, f"--images={photos}", *sizes)
  assert answer["embedded_now"] == 10
  assert contents(output) == contents(vectors) | {
    "_embedding.json": (output / "_embedding.json").read_bytes()
  }


def search(*arguments, run=programs.call):
  status, printed, said = run("tools/search.py", "--json", *arguments)
  assert status == 0, said
  results = json.loads(printed)["results"]
  return [r["key"] for r in results], [r["score"] for r in results]


@pytest.mark.parametrize("index", ["exact", "hnsw"])
def test_search_equals_numpy(vectors, checkpoint, photos, index):
  if index == "hnsw":
    pytest.importorskip("faiss")
  keys, _, rows = read(vectors)
  model = big_siglip.load(checkpoint)
  queries = {
    "--query=A dog": model.embed_texts(["A dog"]),
    f"--image={photos}/b/07.png": model.embed_images([photos / "b/07.png"]),
  }
  for flag, query in queries.items():
    expected = rows @ query[0]
    order = np.argsort(-expected)[:7]
    where = f"--embeddings={vectors}"
    found, scores = search(where, flag, "--top=7", f"--index={index}")
    assert found == [keys[i] for i in order]
    np.testing.assert_allclose(scores, expected[order], atol=1e-6)
  assert found[0] == "b/07.png"


def _write_random(folder, count, shard_size):
  """Writes a folder of random embeddings; returns them."""
  rng = np.random.default_rng(count)
  rows = rng.normal(size=(count, WIDTH)).astype(np.float32)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  keys = [f"{i}.jpg" for i in range(count)]
  inputs = embeddings.Inputs(pathlib.Path("nowhere"), keys)
  model = dict(checkpoint="m", parameters="p", width=WIDTH, preprocessing={})
  made = descriptions.describe(inputs, model, "float32", shard_size)
  writer = embeddings.Writer(folder, made)
  for shard in writer.missing:
    part = list(made.shard(shard))
    writer.write(shard, [keys[i] for i in part], None, rows[part], [])
  writer.close()
  return rows


@pytest.mark.parametrize("block", [1, 100, 10_000])
def test_exact_search_does_not_depend_on_blocks(tmp_path, block):
  rows = _write_random(tmp_path, 1_000, 300)
  queries = rows[[3, 999, 400]]
  reader = embeddings.Reader(tmp_path)
  scores, numbers = search_exactly(reader, queries, 20, block)
  expected = queries @ np.concatenate(list(reader.blocks(64))).T
  order = np.argsort(-expected, axis=1, kind="stable")[:, :20]
  np.testing.assert_array_equal(numbers, order)
  np.testing.assert_allclose(
    scores, np.take_along_axis(expected, order, 1), atol=1e-6
  )
  assert [key for key, _ in reader.rows(numbers[1])][0] == "999.jpg"
  assert search_exactly(reader, queries, 5_000)[0].shape == (3, 1_000)


def test_rows_that_are_not_finite_are_not_found(tmp_path):
  rows = _write_random(tmp_path / "good", 30, 10)
  bad = rows.copy()
  bad[[2, 3]], bad[29, 0] = np.nan, np.inf
  queries = rows[[2, 7]]
  made = descriptions.read(tmp_path / "good")
  writer = embeddings.Writer(tmp_path / "bad", made)
  for shard in writer.missing:
    part = list(made.shard(shard))
    writer.write(shard, [str(i) for i in part], None, bad[part], [])
  writer.close()
  reader = embeddings.Reader(tmp_path / "bad")
  said = []
  scores, numbers = search_exactly(reader, queries, 30, say=said.append)
  (line,) = said
  assert (
    "3 of 30 embeddings are not finite, and are not ranked: 2, 3, 29" in line
  )
  order = np.argsort(-(queries @ rows.T), axis=1, kind="stable")
  order = [[i for i in row if i not in (2, 3, 29)] for row in order]
  np.testing.assert_array_equal(numbers, order)
  assert np.isfinite(scores).all()
  with pytest.raises(UserError, match="the query's embedding is not finite"):
    search_exactly(reader, bad[[2]], 5)
  if importlib.util.find_spec("faiss"):
    with pytest.raises(UserError, match="--index=exact passes them by"):
      index.open_index(reader, index.Choice("hnsw"))


def test_what_is_not_finite_is_listed_and_not_written(tmp_path):
  model = big_siglip.load(make_model(tmp_path / "m"))

  def image(params, rows, labels):
    return jnp.where(jnp.arange(len(rows))[:, None] == 1, jnp.nan, 1.0), labels

  model = dataclasses.replace(
    model, embedders=model.embedders._replace(image=image)
  )
  for name in "abc":
    Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
  inputs = embeddings.read_images(str(tmp_path))
  about = dict(checkpoint="m", parameters="p", width=1, preprocessing={})
  made = descriptions.describe(inputs, about, "float32", 5)
  writer = embeddings.Writer(tmp_path / "out", made)
  embed_missing(
    writer,
    model,
    inputs,
    {0: made.shard(0)},
    batch_size=3,
    num_threads=1,
    progress=lambda count: None,
  )
  writer.close()
  table = pq.read_table(tmp_path / "out")
  assert table["key"].to_pylist() == ["a.png", "c.png"]
  skipped = json.loads((tmp_path / "out" / "_skipped.jsonl").read_text())
  assert skipped == {"path": "b.png", "reason": "its embedding is not finite"}


def test_the_index_finds_all_and_is_made_anew_when_they_change(tmp_path):
  faiss = pytest.importorskip("faiss")
  rows = _write_random(tmp_path, 2_000, 500)
  queries = np.random.default_rng(1).normal(size=(50, WIDTH))
  queries = np.float32(queries / np.linalg.norm(queries, axis=1)[:, None])
  expected = np.argsort(-(queries @ rows.T), axis=1)[:, :10]
  for _ in range(2):  # Made, and read.
    _, found = index.open_index(
      embeddings.Reader(tmp_path), index.Choice("hnsw")
    ).search(queries, 10)
    np.testing.assert_array_equal(found, expected)
    made = (tmp_path / "_hnsw.faiss").stat().st_mtime_ns
  (tmp_path / "shard-000003.parquet").unlink()
  index.open_index(embeddings.Reader(tmp_path), index.Choice("hnsw")).search(
    queries, 10
  )
  assert faiss.read_index(str(tmp_path / "_hnsw.faiss")).ntotal == 1_500
  assert (tmp_path / "_hnsw.faiss").stat().st_mtime_ns > made
  (tmp_path / "_hnsw.faiss").write_bytes(b"damaged")
  index.open_index(embeddings.Reader(tmp_path), index.Choice("hnsw")).search(
    queries, 10
  )


@pytest.mark.parametrize(
  "arguments,expected",
  [
    ([], "--checkpoint=CHECKPOINT must be given"),
    (["--output=o"], "either --images=FOLDER or --texts=FILE"),
    (["--output=o", "--images=a", "--texts=b"], "either --images=FOLDER or"),
    (["--output=o", "--texts=LICENSE", "--dtype=int8"], "float32 or float16"),
    (["--output=o", "--texts=LICENSE", "--shard_size=0"], "at least 1"),
    (["--output=o", "--texts=LICENSE", "more"], "'more': belongs to no flag"),
    (["--output=LICENSE", "--texts=LICENSE"], "LICENSE: not writable"),
  ],
)
def test_mistakes_of_embed(arguments, expected, checkpoint):
  given = [f"--checkpoint={checkpoint}"] if arguments else []
  assert expected in programs.said_in_one_line(
    "tools/embed.py", *given, *arguments
  )


@pytest.mark.parametrize(
  "read_inputs,path,column,expected",
  [
    (embeddings.read_images, "nowhere", None, "nowhere: no such file or"),
    (embeddings.read_images, "configs", None, "--images=configs: holds no"),
    (embeddings.read_images, "configs", "a", "configs is no .csv, .tsv"),
    (
      embeddings.read_texts,
      "configs",
      None,
      "--texts='configs': must hold one of",
    ),
    (embeddings.read_texts, "LICENSE", "a", "LICENSE is no .csv, .tsv"),
    (embeddings.read_texts, "{}/a.csv", None, "has no column 'caption'"),
    (embeddings.read_texts, "{}/empty.txt", None, "holds no texts"),
    (embeddings.read_texts, "{}/latin.txt", None, "must be UTF-8 text"),
  ],
)
def test_mistakes_in_lists(
  read_inputs, path, column, expected, tmp_path, monkeypatch
):
  monkeypatch.chdir(runs.ROOT)
  (tmp_path / "a.csv").write_text("id,words\n1,a dog\n")
  (tmp_path / "empty.txt").write_text("")
  (tmp_path / "latin.txt").write_bytes("ä".encode("latin-1"))
  with pytest.raises(UserError) as error:
    read_inputs(path.format(tmp_path), column)
  assert expected in str(error.value)
  assert len(str(error.value).splitlines()) == 1


def test_a_stray_quote_takes_no_other_rows_with_it(tmp_path):
  table = tmp_path / "a.tsv"
  table.write_text(
    'id\tcaption\n1\t"a red disc\n2\ta 5" disc\n3\t"two\nlines"\n4\tlast\n'
  )
  inputs = embeddings.read_texts(str(table))
  assert list(zip(inputs.keys, inputs.texts, strict=True)) == [
    ("2", '"a red disc'),
    ("3", 'a 5" disc'),
    ("5", "two\nlines"),
    ("6", "last"),
  ]
  table = tmp_path / "a.csv"
  table.write_text('id,caption\n1,"a red disc\n2,a blue disc\n')
  with pytest.raises(
    UserError, match=r"a.csv: line 2: a quote before its text"
  ):
    embeddings.read_texts(str(table))
  table.write_text('id,caption\n1,"a red\n2,a blue\n3,last"\n')
  with pytest.raises(UserError, match="line 2: .* is closed rows later"):
    embeddings.read_texts(str(table))


def write_tar(file):
  """Writes a shard of three pictures, one of which is none."""
  with tarfile.open(file, "w") as shard:
    for name, colour in (("a", "red"), ("b", None), ("c", "blue")):
      data = b"no image"
      if colour:
        buffer = io.BytesIO()
        Image.new("RGB", (9, 7), colour).save(buffer, "PNG")
        data = buffer.getvalue()
      member = tarfile.TarInfo(f"{name}.png")
      member.size = len(data)
      shard.addfile(member, io.BytesIO(data))
  return str(file)


def test_images_of_tar_shards_without_captions(tmp_path, checkpoint):
  shard = write_tar(tmp_path / "0.tar")
  output = tmp_path / "out"
  answer = embed(checkpoint, output, f"--images={shard}")
  assert (answer["rows"], answer["skipped"]) == (2, 1)
  keys, texts, rows = read(output)
  assert keys == [f"{shard}#a", f"{shard}#c"] and texts == [None, None]
  images = [Image.new("RGB", (9, 7), colour) for colour in ("red", "blue")]
  expected = big_siglip.load(checkpoint).embed_images(images)
  np.testing.assert_allclose(rows, expected, atol=1e-6)
  skipped = json.loads((output / "_skipped.jsonl").read_text())
  assert skipped["path"] == f"{shard}#b"
  assert embed(checkpoint, output, f"--images={shard}")["embedded_now"] == 0


@pytest.mark.parametrize("kind", ["tar", "parquet", "tfds"])
def test_data_sets_are_taken_as_the_trainer_takes_them(kind, tmp_path):
  photos = format_cases.photos(count=6)
  data = tmp_path / "data"
  write = getattr(format_cases, f"write_{kind}")
  more = [tmp_path / "download"] if kind == "tfds" else []
  path = str(write(data, photos, *more))
  split = "train" if kind == "tfds" else None
  assert datasets.find_format(path) == kind
  images = embeddings.read_images(path, split=split)
  assert (images.kind, len(images)) == ("images", 6)
  assert {bytes(images.source[i].image) for i in range(6)} == {
    image for image, _ in photos.values()
  }
  texts = embeddings.read_texts(path, split=split)
  expected = sorted(text for _, found in photos.values() for text in found)
  assert sorted(texts.texts) == expected
  assert len(set(texts.keys)) == len(texts.keys) == 12


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("a.tsv", "file_name\tcaption\n0.png\ta dog\n1.png\ta \"cat\"\n"),
    ("a.jsonl", '{"file_name": "0.png", "text": "a dog"}\n'
     '{"file_name": "1.png", "text": "a \\"cat\\""}\n'),
    ("a.csv", 'image,text\n0.png,a dog\n1.png,"a ""cat"""\n'),
  ],
)  # fmt: skip
def test_tables_of_images_and_texts(name, text, tmp_path):
  (tmp_path / name).write_text(text)
  images = embeddings.read_images(str(tmp_path / name))
  assert list(images.keys) == ["0.png", "1.png"]
  texts = embeddings.read_texts(str(tmp_path / name))
  assert list(texts.texts) == ["a dog", 'a "cat"']


def test_texts_of_a_parquet_table_without_images(tmp_path):
  table = pa.table({"id": [1, 2], "caption": [["a", "b"], ["c"]]})
  pq.write_table(table, tmp_path / "a.parquet")
  texts = embeddings.read_texts(str(tmp_path / "a.parquet"))
  assert dict(zip(texts.keys, texts.texts, strict=True)) == {
    "0": "a",
    "0#1": "b",
    "1": "c",
  }
  with pytest.raises(UserError, match="--column='x': .* no such column; there"):
    embeddings.read_texts(str(tmp_path / "a.parquet"), "x")


def test_images_in_linked_folders_are_found_and_pipes_are_not(tmp_path):
  (tmp_path / "a" / "b").mkdir(parents=True)
  (tmp_path / "a" / "b" / "1.JFIF").write_bytes(b"")
  (tmp_path / "a" / "2.avif").write_bytes(b"")
  (tmp_path / "a" / "ring").symlink_to(tmp_path / "a")
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "3.heic").write_bytes(b"")
  (tmp_path / "a" / "other").symlink_to(tmp_path / "other")
  os.mkfifo(tmp_path / "a" / "pipe.png")
  found = embeddings.read_images(str(tmp_path / "a"))
  assert list(found.keys) == ["2.avif", "b/1.JFIF", "other/3.heic"]


def test_a_folder_is_a_plain_parquet_data_set(vectors):
  table = pq.read_table(vectors)
  keys, _, rows = read(vectors)
  assert table["key"].to_pylist() == keys
  np.testing.assert_array_equal(np.array(table["embedding"].to_pylist()), rows)


def test_folders_of_older_names_are_read_and_gone_on_with(tmp_path):
  rows = _write_random(tmp_path, 10, 5)
  for name in ("embedding.json", "skipped.jsonl"):
    (tmp_path / f"_{name}").rename(tmp_path / name)
  reader = embeddings.Reader(tmp_path)
  np.testing.assert_array_equal(np.concatenate(list(reader.blocks(9))), rows)
  text = (tmp_path / "embedding.json").read_text()
  older = json.loads(text)
  del older["data"]
  (tmp_path / "embedding.json").write_text(json.dumps(older))
  made = descriptions.read(tmp_path)
  embeddings.Writer(tmp_path, made).close()
  assert not (tmp_path / "embedding.json").exists()
  assert descriptions.read(tmp_path) == made
  pq.read_table(tmp_path)


@pytest.mark.parametrize(
  "changes,said",
  [
    (dict(shard_size=9), "shard_size=10, now 9"),
    (dict(dtype="float16"), "dtype=float32, now float16"),
    (dict(kind="texts"), "kind=images, now texts"),
    (dict(count=1), "count=25, now 1; --update takes in what is new"),
    (dict(fingerprint="f"), "fingerprint="),
    (dict(checkpoint="moved", inputs="moved"), None),
  ],
)
def test_a_folder_of_something_else_is_not_continued(vectors, changes, said):
  before = contents(vectors)
  made = dataclasses.replace(descriptions.read(vectors), **changes)
  if said is None:
    embeddings.Writer(vectors, made).close()
    return
  with pytest.raises(UserError) as error:
    embeddings.Writer(vectors, made)
  assert said in str(error.value)
  assert len(str(error.value).splitlines()) == 1
  assert contents(vectors) == before


@pytest.mark.parametrize("kind", ["parameters", "resize", "width"])
def test_another_model_neither_goes_on_nor_searches(
  kind, tmp_path, vectors, checkpoint, photos
):
  fields, said = {
    "parameters": (dict(seed=1), f"other parameters, made by {checkpoint}"),
    "resize": (
      dict(data=DATA | dict(resize="bicubic")),
      "other preprocessing (config.data.resize='bicubic', not 'bilinear')",
    ),
    "width": (dict(embed_dim=16), "width=32, now 16"),
  }[kind]
  other = make_model(tmp_path / "other", **fields)
  flags = [f"--checkpoint={other}", f"--images={photos}", "--shard_size=10"]
  flags.append(f"--output={vectors}")
  assert said in programs.said_in_one_line("tools/embed.py", *flags)
  flags = [f"--checkpoint={other}", "--query=a", f"--embeddings={vectors}"]
  assert said in programs.said_in_one_line("tools/search.py", *flags)


def test_mistakes_of_search(tmp_path, vectors, photos):
  where = f"--embeddings={vectors}"
  (tmp_path / "_embedding.json").write_text("{}")
  for arguments, expected in [
    ([], "--embeddings=DIR must be given"),
    ([where], "either --query=TEXT or --image=FILE"),
    ([where, "--query=a", "--image=b"], "either --query=TEXT or"),
    ([where, "--query=a", "--top=0"], "--top=0: must be at least 1"),
    (
      [where, "--query=a", "--index=tree"],
      "must be exact, hnsw, lancedb or milvus",
    ),
    ([where, "--image=nowhere.png"], "nowhere.png: No such file"),
    ([where, f"--image={photos}/05 text.jpg"], "is no image of a known"),
    ([f"--embeddings={photos}", "--query=a"], "holds no embeddings"),
    ([f"--embeddings={tmp_path}", "--query=a"], "is damaged"),
  ]:
    assert expected in programs.said_in_one_line("tools/search.py", *arguments)


def test_two_programs_do_not_write_the_same_folder(tmp_path):
  _write_random(tmp_path, 10, 5)
  made = descriptions.read(tmp_path)
  first = embeddings.Writer(tmp_path, made)
  with pytest.raises(UserError, match="another program"):
    embeddings.Writer(tmp_path, made)
  first.close()
  (tmp_path / "shard-000000.parquet").write_bytes(b"PAR1 cut")
  with pytest.raises(UserError, match="is damaged"):
    embeddings.Writer(tmp_path, made)


def test_nothing_readable_is_told(tmp_path, checkpoint):
  (tmp_path / "a.jpg").write_text("no image")
  flags = [f"--checkpoint={checkpoint}", f"--images={tmp_path}"]
  status, _, said = programs.call(
    "tools/embed.py", *flags, f"--output={tmp_path}/out"
  )
  assert status == 1
  assert "none of 1 images can be read" in said
