"""What finds the nearest rows of a folder: alike, filtered, kept up to date.

The server of Milvus has an environment of its own: make test-vectors.
"""

import dataclasses
import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import programs
import pytest
import runs
from test_embed import embed, make_model

from big_siglip import embeddings
from big_siglip.embeddings import description as descriptions
from big_siglip.embeddings import filters, follow, index, lance, search
from big_siglip.errors import UserError

_HAS_SERVER = importlib.util.find_spec("milvus") is not None
MILVUS = pytest.param(
  "milvus",
  marks=pytest.mark.skipif(
    not _HAS_SERVER, reason="the server has an environment: make test-vectors"
  ),
)
DATABASES = ["lancedb", MILVUS]
WHERES = [
  None,
  "width > 100 and width <= 200.5",
  "not (width > 100 or label = 'dog')",
  "label is null or `two words` = 'it''s \"2\"'",
  "label is not null and good != true",
  "not good = true",
  "width < 3000000000 and id < 300.5",
  "label not in ('cat', 'a\\b')",
  "score between -1 and 0.25",
  "key like '1%' and id < 150",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
  """The address of a Milvus server that was started for these tests."""
  port, folder = runs.free_port(), tmp_path_factory.mktemp("milvus")
  program = pathlib.Path(sys.executable).with_name("milvus-server")
  with (folder / "log").open("wb") as log:
    process = subprocess.Popen(
      [program, f"--data={folder}", f"--proxy-port={port}"],
      stdout=log,
      stderr=log,
      start_new_session=True,
    )
  from pymilvus import MilvusClient, MilvusException

  address = f"http://127.0.0.1:{port}"
  for _ in range(60):
    try:
      MilvusClient(address, timeout=2).list_collections()
      break
    except MilvusException:
      time.sleep(1)
  else:
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail(f"it does not answer; see {folder}/logs (is another running?)")
  yield address
  os.killpg(process.pid, signal.SIGKILL)  # The program starts another one.
  process.wait()


@pytest.fixture
def choose(request):
  """Returns a `Choice` of a name."""

  def chosen(name, **fields):
    if name == "milvus":
      fields["database"] = request.getfixturevalue("server")
    return index.Choice(name, **fields)

  return chosen


def write_rows(folder, count, dtype="float32", bad=(), width=16):
  """Writes unit vectors, with columns of all types, some of them empty."""
  rng = np.random.default_rng(0)
  subjects = rng.normal(size=(30, width))
  rows = subjects[rng.integers(0, 30, count)] + rng.normal(size=(count, width))
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  rows[list(bad), 1] = np.nan

  def some(values):
    drawn = rng.choice(np.array(values, object), count)
    return [None if rng.random() < 0.2 else value for value in drawn]

  columns = {
    "label": some(["dog", "cat", "a\\b"]),
    "good": some([True, False]),
    "score": some([-2.0, 0.0, 0.25, 3.0]),
    "two words": some(["x", 'it\'s "2"']),
  }
  keys = [f"{i}.jpg" for i in range(count)]
  inputs = embeddings.Inputs(pathlib.Path("nowhere"), keys, others=columns)
  model = dict(checkpoint="m", parameters="p", width=width, preprocessing={})
  made = descriptions.describe(inputs, model, dtype, 300)
  writer = embeddings.Writer(folder, made)
  for shard in writer.missing:
    part = list(made.shard(shard))
    fields = [
      {name: values[i] for name, values in columns.items()}
      | {"width": i % 250 or None}
      for i in part
    ]
    writer.write(
      shard, [keys[i] for i in part], None, rows[part], [], None, fields
    )
  writer.close()
  return embeddings.Reader(folder)


def assert_finds_the_same(found, reader, queries, where=None, top=10):
  scores, numbers = found.search(queries, top, where)
  expected = index.open_index(reader).search(queries, top, where)
  np.testing.assert_array_equal(numbers, expected[1])
  np.testing.assert_allclose(scores, expected[0], atol=1e-5)


@pytest.mark.parametrize("name", ["hnsw", *DATABASES])
def test_each_finds_what_exact_search_finds(tmp_path, name, choose):
  reader = write_rows(tmp_path / "all_find_the_same", 900)
  found = index.open_index(reader, choose(name))
  queries = np.concatenate(list(reader.blocks(900)))[::450] + 0.01
  queries /= np.linalg.norm(queries, axis=1, keepdims=True)
  for where in [*WHERES, "id in (3, 5)"]:
    if name != "milvus":
      assert_finds_the_same(found, reader, queries, where)
      continue
    # Its graph may miss one of ten; the condition itself must be exact.
    condition = where and filters.parse(where, reader.schema)
    passing = found._client.query(
      found._name,
      filter=condition.milvus if where else "",
      output_fields=["id"],
      limit=1000,
    )
    expected = search.choose(reader, where)
    expected = np.arange(900) if where is None else np.flatnonzero(expected)
    assert sorted(row["id"] for row in passing) == expected.tolist()
    _, numbers = found.search(queries, 10, where)
    _, best = index.open_index(reader).search(queries, 10, where)
    assert np.isin(numbers, best).mean() >= 0.9
  with pytest.raises(UserError, match="true of none of the rows"):
    found.search(queries, 10, "width > 1000")
  with pytest.raises(UserError, match="the query's embedding is not finite"):
    found.search(queries * np.nan, 10)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_many_rows_are_grouped(tmp_path, dtype, monkeypatch):
  monkeypatch.setattr(lance, "_MIN_ROWS", 1000)
  monkeypatch.setattr(lance, "_GROUP", 50)
  reader = write_rows(tmp_path, 3000, dtype, width=128)
  found = index.open_index(reader, index.Choice("lancedb"))
  assert found._table.list_indices()
  queries = np.concatenate(list(reader.blocks(3000)))[::100]
  for where in (None, "width > 100"):
    _, numbers = found.search(queries, 10, where)
    _, expected = index.open_index(reader).search(queries, 10, where)
    hits = [
      len(set(a) & set(b)) for a, b in zip(numbers, expected, strict=True)
    ]
    assert np.mean(hits) >= 9.5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  return make_model(tmp_path_factory.mktemp("model") / "m")


def make_photos(folder, numbers):
  folder.mkdir(exist_ok=True)
  for number in numbers:
    pixels = np.random.default_rng(number).integers(0, 256, (9, 9 + number, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")


@pytest.mark.parametrize("name", DATABASES)
def test_a_database_follows_its_folder(
  tmp_path, name, choose, checkpoint, monkeypatch
):
  photos, output = tmp_path / "photos", tmp_path / "followed"
  choice = choose(name)
  make_photos(photos, range(12))
  images = f"--images={photos}"
  embed(checkpoint, output, images, "--shard_size=4")
  index.open_index(embeddings.Reader(output), choice)
  taken = []
  tables = follow.Difference.tables

  def counted(self, reader):
    for table in tables(self, reader):
      taken.extend(table["key"].to_pylist())
      yield table

  monkeypatch.setattr(follow.Difference, "tables", counted)
  (photos / "3.png").unlink()
  (photos / "5.png").unlink()
  make_photos(photos, [20, 21])
  (photos / "20.png").replace(photos / "7.png")
  embed(checkpoint, output, images, "--update")
  reader = embeddings.Reader(output)
  found = index.open_index(reader, choice)
  assert sorted(taken) == ["21.png", "7.png"]
  queries = np.concatenate(list(reader.blocks(99)))
  assert_finds_the_same(found, reader, queries, top=99)
  assert_finds_the_same(found, reader, queries, "width > 12", top=99)
  index.open_index(reader, choice)
  assert len(taken) == 2, "what is there already is not sent again"
  # By the commands.
  flags = [f"--embeddings={output}", f"--index={name}"]
  if choice.database:
    flags.append(f"--database={choice.database}")
  query = [f"--image={photos}/7.png", "--top=2", "--where=width = 29"]
  status, printed, said = programs.call("tools/search.py", *flags, *query)
  assert status == 0, said
  assert [line.split()[1] for line in printed.splitlines()] == ["7.png"]


class _Killed(Exception):
  pass


@pytest.mark.parametrize("name", DATABASES)
def test_one_that_was_killed_while_it_followed_is_completed(
  tmp_path, name, choose, monkeypatch
):
  choice = choose(name)
  reader = write_rows(tmp_path / "killed", 900)
  monkeypatch.setattr(follow, "_BLOCK", 100)
  tables = follow.Difference.tables

  def stops(self, reader):
    for number, table in enumerate(tables(self, reader)):
      if number == 4:
        raise _Killed
      yield table

  with monkeypatch.context() as patched:
    patched.setattr(follow.Difference, "tables", stops)
    with pytest.raises((_Killed, UserError)):  # LanceDB makes its own of it.
      index.open_index(reader, choice)
  queries = np.concatenate(list(reader.blocks(900)))[::300]
  found = index.open_index(reader, choice)
  assert_finds_the_same(found, reader, queries, top=50)


@pytest.mark.parametrize("name", DATABASES)
def test_rows_that_are_not_finite_are_left_out(tmp_path, name, choose):
  choice = choose(name)
  reader = write_rows(tmp_path / "nonfinite", 30, bad=(4, 7))
  found = index.open_index(reader, choice)
  queries = next(reader.blocks(30))[:2]
  assert_finds_the_same(found, reader, queries, top=30)
  scores, numbers = found.search(queries, 30)
  assert numbers.shape == (2, 28)
  assert not {4, 7} & set(numbers.ravel().tolist())
  assert np.isfinite(scores).all()


@pytest.mark.skipif(not _HAS_SERVER, reason="see MILVUS")
def test_a_collection_of_something_else_stays_as_it_is(tmp_path, server):
  from pymilvus import MilvusClient

  choice = index.Choice("milvus", server, "mine")
  small = write_rows(tmp_path / "small", 20, width=8)
  found = index.open_index(small, choice)
  wide = write_rows(tmp_path / "wide", 20)
  with pytest.raises(UserError, match="'mine' has width=8, and .*wide 16; "):
    index.open_index(wide, choice)
  other = dataclasses.replace(small.description, parameters="q")
  descriptions.write(small.folder, other)
  with pytest.raises(UserError, match="has parameters=p, and .*small q; name"):
    index.open_index(embeddings.Reader(small.folder), choice)
  with pytest.raises(UserError, match="--database=.*: failed to create query"):
    found.search(next(small.blocks(1)), 3, "key like '%7.jpg'")
  client = MilvusClient(server)
  client.create_collection("theirs", 8)
  with pytest.raises(UserError, match="'theirs' was not made by big-siglip"):
    index.open_index(small, index.Choice("milvus", server, "theirs"))
  assert {"mine", "theirs"} <= set(client.list_collections())
  assert found.search(next(small.blocks(1)), 3)[1].shape == (1, 3)


def test_mistakes_of_an_index(tmp_path):
  reader = write_rows(tmp_path, 3)
  for fields, said in [
    (dict(name="tree"), "--index=tree: must be exact, hnsw, lancedb or milvus"),
    (dict(database="http://a:1"), "--database=http://a:1: belongs to --index="),
    (dict(collection="a"), "--collection=a: belongs to --index=milvus"),
    (dict(name="milvus"), "--database=: must be a server's address, such as"),
    (dict(name="milvus", database="a.db"), "--database=a.db: must be a serv"),
    (
      dict(name="milvus", database="http://a", collection="a-b"),
      "--collection=a-b: must be letters, digits and underscores",
    ),
    (
      dict(name="milvus", database="http://127.0.0.1:1"),
      "--database=http://127.0.0.1:1: Fail connecting to server on 127.0.0.1:1",
    ),
  ]:
    with pytest.raises(UserError) as error:
      index.open_index(reader, index.Choice(**fields))
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1
