"""The same photos in every format give the same examples."""

import contextlib
import functools
import http.server
import io
import json
import os
import pathlib
import pickle
import re
import shutil
import sys
import tarfile
import threading

from array_record.python import array_record_module
import format_cases
import fsspec
import loading
import numpy as np
import programs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import wit_cases

from big_siglip.data import faults, pipeline, sources
from big_siglip.data import images as images_module
from big_siglip.data.faults import take_retries
from big_siglip.data.sources import Filters, Options, tar_index, tar_members
from big_siglip.errors import BadExample, UserError

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
  """Keeps what is cached out of the user's own folder."""
  before = os.environ.get("BIG_SIGLIP_DATA")
  os.environ["BIG_SIGLIP_DATA"] = str(tmp_path_factory.mktemp("cache"))
  yield
  os.environ.pop("BIG_SIGLIP_DATA")
  if before is not None:
    os.environ["BIG_SIGLIP_DATA"] = before


@pytest.fixture(scope="module")
def images():
  return format_cases.photos()


def write_all(folder, images):
  """Returns {label: (name, split, path)} of the same images."""
  made = {
    kind: (
      "folder",
      "all",
      format_cases.write_folder(folder / kind, images, kind),
    )
    for kind in ("csv", "tsv", "jsonl")
  }
  tars = format_cases.write_tar(folder / "tar", images)
  prepared = format_cases.write_tfds(folder / "tfds", images, folder / "no")
  old = format_cases.as_tfrecord(prepared, folder / "old")
  new = str(folder / "rewritten")
  status, output, error = programs.call(
    "tools/rewrite_tfrecord.py", f"--input={old}", f"--output={new}", "--json"
  )
  assert status == 0, error
  last = len(list(pathlib.Path(tars).glob("*.tar"))) - 1
  return made | {
    "tar": ("tar", "all", tars),
    "braces": ("tar", "all", f"{tars}/{{00000..{last:05d}}}.tar"),
    "glob": ("tar", "all", f"{tars}/*.tar"),
    "parquet": (
      "parquet",
      "all",
      format_cases.write_parquet(folder / "parquet", images),
    ),
    "tfds": ("tfds", "train", prepared),
    "tfds by name": ("tfds:photos:1.2.0", "train", str(folder / "tfds")),
    "rewritten": ("tfds", "train", new),
    "arrayrecord": ("arrayrecord", "all", f"{prepared}/*.array_record*"),
  }


@pytest.fixture(scope="module")
def formats(tmp_path_factory, images):
  return write_all(tmp_path_factory.mktemp("formats"), images)


LABELS = (
  "csv",
  "tsv",
  "jsonl",
  "tar",
  "braces",
  "glob",
  "parquet",
  "tfds",
  "tfds by name",
  "rewritten",
  "arrayrecord",
)


def plain(name):
  """Returns an example's name without what its format adds."""
  return re.sub(r"^.*[/#]|\.jpg$", "", name)


def assert_same(source, images):
  assert len(source) == len(images)
  for example, (name, (data, texts)) in zip(
    source, images.items(), strict=True
  ):
    assert example.image == data
    assert list(example.texts) == texts
    assert plain(example.name) == name


@pytest.mark.parametrize("label", LABELS)
def test_all_formats_hold_the_same_examples(formats, images, label):
  if label == "arrayrecord":
    options = Options(text_keys=("captions/text",), image_key="photo")
    source = sources.open_source(*formats[label], options)
  else:
    source = sources.open_source(*formats[label])
  assert_same(source, images)
  again = pickle.loads(pickle.dumps(source))
  assert again[len(again) - 1] == source[len(source) - 1]
  assert again[0] == source[0]


def test_flickr_photos_are_the_same_in_every_format(shared_data, tmp_path):
  photos = format_cases.photos(shared_data / "flickr1k", 60)
  assert all(len(texts) == 5 for _, texts in photos.values())
  for label, place in write_all(tmp_path, photos).items():
    options = Options()
    if label == "arrayrecord":
      options = Options(text_keys=("captions/text",), image_key="photo")
    assert_same(sources.open_source(*place, options), photos)


def test_labels_come_with_their_names(formats):
  for label in ("parquet", "tfds", "rewritten"):
    source = sources.open_source(*formats[label])
    assert source.class_names == format_cases.NAMES
    assert [e.label for e in source] == [i % 3 for i in range(len(source))]
  options = Options(text_keys=("kind",), templates=("a {}", "the {}"))
  source = sources.open_source(*formats["tfds"], options)
  assert source[2].texts == ("a dog", "the dog")


def test_all_captions_are_examples_of_their_own(formats, images):
  expected = [(n, t) for n, (_, texts) in images.items() for t in texts]
  for label in ("csv", "tar", "parquet", "tfds"):
    source = sources.open_source(*formats[label], Options(captions="all"))
    got = [(plain(e.name), *e.texts) for e in source]
    assert got == expected


@pytest.mark.parametrize("label", LABELS)
def test_named_fields_come_with_every_example(formats, label):
  options = Options(fields=("boxes",))
  if label == "arrayrecord":
    options = Options(
      fields=("boxes",), text_keys=("captions/text",), image_key="photo"
    )
  source = sources.open_source(*formats[label], options)
  for number in (0, 1, 29):
    boxes = source[number].fields["boxes"]
    if isinstance(boxes, str):  # A table of text holds no other.
      boxes = json.loads(boxes)
    found = np.array(boxes).reshape(-1, 4)
    expected = np.array(format_cases.boxes(number)).reshape(-1, 4)
    np.testing.assert_array_equal(found, expected)
  assert pickle.loads(pickle.dumps(source))[1].fields.keys() == {"boxes"}


def test_weights_say_which_field_is_drawn(formats):
  keys = (("captions", 3.0), ("alt_text", 1.0))
  source = sources.open_source(*formats["tar"], Options(text_keys=keys))
  assert len(source[0].texts) == 3
  np.testing.assert_allclose(source[0].weights, [0.375, 0.375, 0.25])
  options = Options(text_keys=keys, templates=("{}", "a photo of {}"))
  example = sources.open_source(*formats["tar"], options)[0]
  assert example.texts[1] == "a photo of " + example.texts[0]
  assert len(example.weights) == 6
  np.testing.assert_allclose(sum(example.weights), 1)


@pytest.mark.parametrize("label", ["tar", "parquet"])
def test_filters_keep_what_the_metadata_allows(formats, label, caplog):
  filters = Filters(min_size=10, max_aspect=2.0)
  source = sources.open_source(*formats[label], Options(filters=filters))
  # Images are 12 wide and 8, 9 ... 37 high.
  assert len(source) == 15
  assert source.filtered == {"min_size=10": 2, "max_aspect=2.0": 13}
  assert "15 examples of 30 records; left out: min_size=10: 2" in caplog.text
  assert plain(source[0].name) == "00002"
  every = Options(filters=filters, captions="all")
  assert len(sources.open_source(*formats[label], every)) == 30


def test_filters_of_score_and_language(formats):
  filters = Filters(min_score=0.1, score_key="similarity", language="de")
  source = sources.open_source(*formats["tar"], Options(filters=filters))
  assert [plain(e.name) for e in source] == [
    f"{i:05d}" for i in range(10, 30) if i % 3 == 0
  ]
  filters = Filters(min_score=0.1, score_key="score")
  assert (
    len(sources.open_source(*formats["tfds"], Options(filters=filters))) == 20
  )


@pytest.mark.parametrize(
  ("label", "options", "said"),
  [
    ("tar", dict(text_keys=("nothing",)), "text_keys='nothing': the tar"),
    (
      "parquet",
      dict(image_key="photo"),
      "has no such field; there are: image",
    ),
    ("parquet", dict(text_keys=("image",)), "text_keys='image': is the image"),
    ("parquet", dict(label_key="no"), "config.data.label_key='no': the Par"),
    (
      "tfds",
      dict(text_keys=("captions",)),
      "config.data.text_keys='captions': photos/1.2.0, split train has no",
    ),
    ("csv", dict(text_keys=("alt",)), "missing column alt"),
    ("csv", dict(fields=("masks",)), "missing column masks; it has: image, c"),
    ("jsonl", dict(fields=("masks",)), "missing column masks"),
    ("tar", dict(fields=("masks",)), "config.data.fields='masks': the tar"),
    ("parquet", dict(fields=("masks",)), "config.data.fields='masks': the P"),
    ("tfds", dict(fields=("masks",)), "config.data.fields='masks': photos"),
    (
      "arrayrecord",
      dict(fields=("masks",), text_keys=("captions/text",), image_key="photo"),
      "config.data.fields='masks': the ArrayRecord files",
    ),
    ("csv", dict(filters=Filters(min_size=3)), "need sizes"),
    ("tar", dict(filters=Filters(min_size=99)), "data set is empty after"),
    (
      "tar",
      dict(filters=Filters(min_score=1, score_key="clip")),
      "config.data.filters.score_key='clip'",
    ),
    ("arrayrecord", {}, "config.data.text_keys=None: must name a field"),
  ],
)
def test_what_the_data_lacks_is_told_in_a_line(formats, label, options, said):
  with pytest.raises(UserError) as e:
    sources.open_source(*formats[label], Options(**options))
  assert said in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
  ("place", "said"),
  [
    (("tar", "train", "X"), "config.data.split='train': must be all for tar"),
    (("tar", "all", "/no/*.tar"), "no such files"),
    (("tar", "all", "/no/a.tar"), "config.data.path='/no/a.tar': no such file"),
    (("tar", "all", "/no/{0..3}.tar"), "none of 4 shards can be read"),
    (("tar", "all", "/no/{0..3.tar"), "braces"),
    (("parquet", "all", None), "config.data.path=None: must be the folder"),
    (("tfds", "train", "/no"), "no prepared TFDS data set lies there"),
    (("tfds:photos", "train", "/no"), "not prepared in /no"),
  ],
)
def test_what_cannot_be_opened_is_told_in_a_line(place, said):
  with pytest.raises(UserError) as e:
    sources.open_source(*place)
  assert said in str(e.value) and "\n" not in str(e.value)


def test_tfrecord_names_the_tool_and_damaged_records_are_left_out(
  formats, images, tmp_path
):
  old = pathlib.Path(
    format_cases.as_tfrecord(formats["tfds"][2], tmp_path / "o")
  )
  with pytest.raises(UserError, match="big-siglip rewrite_tfrecord --input="):
    sources.open_source("tfds", "train", str(old))
  (file,) = old.glob("*tfrecord-*")
  data = bytearray(file.read_bytes())
  place = bytes(data).index(images["00007"][0])
  data[place + 50] ^= 1
  file.write_bytes(data[:-5])  # And the last one is cut.
  new = str(tmp_path / "new")
  arguments = f"--input={old}", f"--output={new}"
  status, output, error = programs.start(
    "tools/rewrite_tfrecord.py", *arguments
  )
  assert status == 0, error
  assert "28 records in 1 shards" in output and "2 damaged" in output
  assert "damaged record at byte" in error and "ends within" in error
  left = {k: v for k, v in images.items() if k not in ("00007", "00029")}
  assert_same(sources.open_source("tfds", "train", new), left)
  said = programs.said_in_one_line("tools/rewrite_tfrecord.py", *arguments)
  assert "exists" in said


def _index(path):
  data = path.read_bytes()
  return tar_index.build(lambda a, b: data[a:b], len(data))


@pytest.mark.parametrize(
  "form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT]
)
def test_long_and_odd_names_are_read_as_tarfile_does(tmp_path, form):
  long = 90 if form == tarfile.USTAR_FORMAT else 300
  names = [
    "a/b.c/000.jpg",
    "a/b.c/000.TXT",
    "plain",
    f"{'x' * long}.jpg",
    f"{'x' * long}.txt",
    "a/1.seg.png",
  ]
  if form != tarfile.USTAR_FORMAT:
    names += ["猫.jpg", "猫.txt"]
  path = tmp_path / "odd.tar"
  with tarfile.open(path, "w", format=form) as tar:
    tar.addfile(_folder("a"))
    for number, name in enumerate(names):
      info = tarfile.TarInfo(name)
      info.size = number * 300
      tar.addfile(info, io.BytesIO(bytes([65 + number]) * info.size))
  data = path.read_bytes()
  found = list(tar_members.members(lambda a, b: data[a:b], 0, len(data)))
  with tarfile.open(path) as tar:
    expected = [
      (m.name, m.offset_data, m.size) for m in tar.getmembers() if m.isfile()
    ]
  assert [(m.name, m.start, m.size) for m in found] == expected
  index = _index(path)
  assert len(index.starts) == (3 if form == tarfile.USTAR_FORMAT else 4)
  assert not index.problem


@pytest.mark.parametrize("size", ["many", "-5000", "1.5", "9" * 30])
def test_a_size_that_is_none_damages_one_shard(tmp_path, size):
  path = tmp_path / "odd.tar"
  with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
    for name in ("0.jpg", "1.jpg"):
      info = tarfile.TarInfo(name)
      info.pax_headers = {"size": size} if name == "1.jpg" else {}
      tar.addfile(info)
  index = _index(path)
  assert index.starts[0] == 0
  assert "no size of a file" in index.problem or "ends within" in index.problem


def test_parquet_text_that_is_no_utf8_costs_only_its_row(tmp_path):
  path = tmp_path / "odd.parquet"
  wit_cases.write_odd_parquet(path, [b"an image"] * 5)
  source = sources.open_source("parquet", "all", str(path))
  assert source[0].texts == ("0",) and source[4].texts == ("4",)
  with pytest.raises(BadExample, match="holds text that is no UTF-8"):
    source[1]
  options = Options(captions="all")
  source = sources.open_source("parquet", "all", str(path), options)
  assert [e.texts for e in source] == [("0",), ("2",), ("3",), ("4",)]


def test_json_that_is_too_deep_is_one_bad_record(tmp_path):
  path = tmp_path / "deep.tar"
  with tarfile.open(path, "w") as tar:
    for name, data in (
      ("0.jpg", b"x"),
      ("0.txt", b"a text"),
      ("1.jpg", b"x"),
      ("1.json", b"[" * 100_000),
    ):
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  source = sources.open_source("tar", "all", str(path))
  assert source[0].texts == ("a text",)
  with pytest.raises(BadExample, match="its json file is no JSON"):
    source[1]


def _folder(name):
  info = tarfile.TarInfo(name)
  info.type = tarfile.DIRTYPE
  return info


def test_a_sparse_shard_of_10_gigabytes_is_indexed_by_its_headers(tmp_path):
  path = tmp_path / "big.tar"
  size, count = 512 * 2**20, 20
  with path.open("wb") as file:
    for number in range(count):
      info = tarfile.TarInfo(f"{number:05d}.jpg")
      info.size = size
      file.write(info.tobuf())
      file.seek(size, os.SEEK_CUR)
    file.write(bytes(1024))
  assert path.stat().st_size > 10 * 2**30
  asked = []
  with path.open("rb") as file:

    def read(start, stop):
      asked.append(stop - start)
      return os.pread(file.fileno(), stop - start, start)

    index = tar_index.build(read, path.stat().st_size)
  assert len(index.starts) == count and index.starts.dtype == np.uint32
  assert sum(asked) < 512 * (count + 2)


def test_an_index_is_kept_until_its_shard_changes(
  tmp_path, images, monkeypatch
):
  folder = pathlib.Path(format_cases.write_tar(tmp_path / "t", images))
  open_all = functools.partial(sources.open_source, "tar", "all", str(folder))
  assert len(open_all()) == 30
  assert len(list(folder.glob("*.tar.index.npz"))) == 3
  built = []
  build = tar_index.build
  monkeypatch.setattr(
    tar_index, "build", lambda *a: built.append(1) or build(*a)
  )
  assert len(open_all()) == 30 and not built
  few = dict(list(images.items())[:4])
  shutil.copy(
    format_cases.write_tar(tmp_path / "u", few) + "/00000.tar",
    folder / "00001.tar",
  )
  assert len(open_all()) == 24 and len(built) == 1
  (folder / "00002.tar.index.npz").write_bytes(b"half")
  assert len(open_all()) == 24 and len(built) == 2


def test_many_kept_indices_are_read_by_many_threads(tmp_path, images):
  few = dict(list(images.items())[:4])
  folder = format_cases.write_tar(tmp_path / "t", few)
  interval = sys.getswitchinterval()
  try:
    sys.setswitchinterval(1e-5)
    # The first opening keeps an index, which 640 readers then want at once.
    for path in (folder, "::".join([folder] * 640)):
      source = sources.open_source("tar", "all", path)
  finally:
    sys.setswitchinterval(interval)
  assert len(source) == 640 * 4


def _write_tar(file, members, **options):
  with tarfile.open(file, "w", **options) as tar:
    for name, content in members:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))


def test_every_image_of_a_shard_counts_whatever_its_format(tmp_path, images):
  jpeg = images["00000"][0]
  _write_tar(
    tmp_path / "a.tar",
    [
      member
      for number, extension in enumerate(("jpg", "jpeg", "PNG", "webp"))
      for member in ((f"{number}.{extension}", jpeg), (f"{number}.txt", b"x"))
    ],
  )
  source = sources.open_source("tar", "all", str(tmp_path))
  assert [e.image for e in source] == 4 * [jpeg]
  options = Options(image_key="png")
  source = sources.open_source("tar", "all", str(tmp_path), options)
  assert set(_bad(source)[0]) == {0, 1, 3}


def test_hidden_files_in_a_shard_are_of_no_sample(tmp_path, images):
  jpeg = images["00000"][0]
  members = [("./.DS_Store", b"x")]
  for name in ("0", "1"):
    for file, data in ((f"{name}.jpg", jpeg), (f"{name}.txt", b"text")):
      members += [(f"./._{file}", b"macOS"), (f"./{file}", data)]
  _write_tar(tmp_path / "a.tar", members)
  source = sources.open_source("tar", "all", str(tmp_path))
  assert _bad(source) == ({}, ["0", "1"])
  source = sources.open_source(
    "tar", "all", str(tmp_path), Options(captions="all")
  )
  assert [e.texts for e in source] == 2 * [("text",)]


def test_samples_of_one_key_stay_apart(tmp_path, images):
  (one, _), (two, _) = images["00000"], images["00001"]
  members = [("a.jpg", one), ("a.txt", b"1"), ("a.jpg", two), ("a.txt", b"2")]
  _write_tar(tmp_path / "a.tar", members)
  source = sources.open_source("tar", "all", str(tmp_path))
  assert [(e.image, *e.texts) for e in source] == [(one, "1"), (two, "2")]


def test_a_compressed_shard_is_called_so(tmp_path):
  with tarfile.open(tmp_path / "a.tar", "w:gz"):
    pass
  with pytest.raises(UserError, match="a.tar: is compressed"):
    sources.open_source("tar", "all", str(tmp_path))


def test_class_names_may_have_ends_of_lines_of_windows(tmp_path, images):
  (tmp_path / "classnames.txt").write_bytes(b"cat\r\ndog\r\n")
  members = [("0.jpg", images["00000"][0]), ("0.cls", b"1")]
  _write_tar(tmp_path / "a.tar", members)
  source = sources.open_source("tar", "all", str(tmp_path))
  assert source.class_names == ("cat", "dog") and source[0].texts == ("dog",)


@pytest.mark.parametrize("name", ["v[1]", "v{1", "{a,b}", "what?"])
def test_paths_may_hold_the_signs_of_patterns(tmp_path, images, name):
  (tmp_path / name).mkdir()
  file = tmp_path / name / f"{name}.TAR"
  _write_tar(file, [("0.jpg", images["00000"][0]), ("0.txt", b"x")])
  for path in (file.parent, file):
    assert len(sources.open_source("tar", "all", str(path))) == 1


def test_names_that_are_no_unicode_are_told(tmp_path, images):
  folder = tmp_path / os.fsdecode(b"caf\xe9")
  folder.mkdir()
  members = [("caf\xe9.jpg", b"no image"), ("caf\xe9.txt", b"x")]
  form = {"encoding": "latin-1", "format": tarfile.GNU_FORMAT}
  _write_tar(folder / "a.tar", members, **form)
  source = sources.open_source("tar", "all", str(folder))
  name = source[0].name
  fault = faults.Fault.of(0, name, BadExample("is no image", "image"))
  rows = faults.as_rows([([fault], 0)], 1)
  (told,) = faults.from_rows(rows["skipped"])
  assert told.name.endswith("#caf\\udce9")


@pytest.mark.parametrize(
  ("name", "path", "said"),
  [
    ("tar", "no://a/b.tar", "config.data.path='no://a/b.tar': Protocol not"),
    ("folder", "no://a", "config.data.path='no://a': Protocol not known"),
    ("tfds:coco", "no://a", "config.data.path='no://a/coco': Protocol not"),
    ("tfds:coco", "memory://none", "not prepared in memory://none"),
  ],
)
def test_remote_places_that_do_not_exist_are_told(name, path, said):
  with pytest.raises(UserError) as e:
    sources.open_source(name, "all", path)
  assert said in str(e.value) and "\n" not in str(e.value)


def test_columns_of_other_kinds_and_names_are_read(tmp_path, images):
  data = [images["00000"][0], images["00001"][0]]
  table = pa.table(
    {
      "image/encoded": pa.array(data, pa.binary_view()),
      "caption": pa.array(["a", "b"]).dictionary_encode(),
    }
  )
  pq.write_table(table, tmp_path / "a.parquet")
  source = sources.open_source("parquet", "all", str(tmp_path))
  assert [(e.image, *e.texts) for e in source] == list(
    zip(data, "ab", strict=True)
  )
  options = Options(captions="all")
  assert len(sources.open_source("parquet", "all", str(tmp_path), options)) == 2


def _bad(source):
  """Returns the kinds of those that cannot be read, and the readable rest."""
  kinds, names = {}, []
  for index in range(len(source)):
    try:
      names.append(plain(source[index].name))
    except BadExample as error:
      kinds[index] = error.kind
      assert error.name and str(error)
  return kinds, names


def test_a_truncated_shard_keeps_what_is_whole(tmp_path, images):
  folder = pathlib.Path(format_cases.write_tar(tmp_path / "t", images))
  shard = folder / "00001.tar"
  data = shard.read_bytes()
  starts = _index(shard).starts
  # Its first file has three blocks of headers: webdataset writes PAX.
  shard.write_bytes(data[: int(starts[6]) * 512 + 1_700])
  source = sources.open_source("tar", "all", str(folder))
  (fault,) = source.faults
  assert fault.kind == "record" and fault.name == str(shard)
  assert "ends within" in fault.reason
  kinds, names = _bad(source)
  assert kinds == {16: "record"}
  assert names == [n for n in images if not 16 <= int(n) < 20]
  shard.write_bytes(data[: int(starts[6]) * 512])
  source = sources.open_source("tar", "all", str(folder))
  assert "without the empty blocks" in source.faults[0].reason
  assert len(_bad(source)[1]) == 26
  shard.write_bytes(data[: int(starts[6]) * 512] + b"x" * 5000)
  source = sources.open_source("tar", "all", str(folder))
  assert "no tar header at byte" in source.faults[0].reason
  assert len(_bad(source)[1]) == 26


def test_shards_that_are_or_go_missing(tmp_path, images):
  folder = pathlib.Path(format_cases.write_tar(tmp_path / "t", images, 2))
  pattern = f"{folder}/{{00000..00014}}.tar"
  (folder / "00003.tar").unlink()
  source = sources.open_source("tar", "all", pattern)
  assert [(f.kind, f.index) for f in source.faults] == [("missing", -1)]
  assert len(source) == 28
  (folder / "00000.tar").unlink()
  assert _bad(source)[0] == {0: "missing", 1: "missing"}
  with pytest.raises(UserError, match="2 of 15 shards cannot be read, more"):
    sources.open_source("tar", "all", pattern)


def test_damaged_records_of_every_format(formats, images, tmp_path):
  # ArrayRecord: a chunk, then the end of a file.
  folder = tmp_path / "tfds"
  shutil.copytree(formats["tfds"][2], folder)
  (file,) = folder.glob("*array_record-*")
  data = bytearray(file.read_bytes())
  data[9_000] ^= 255
  file.write_bytes(data)
  source = sources.open_source("tfds", "train", str(folder))
  kinds, names = _bad(source)
  assert list(kinds.values()) == ["record"] and len(names) == 29
  file.write_bytes(data[: len(data) // 2])
  source = sources.open_source("tfds", "train", str(folder))
  assert set(_bad(source)[0].values()) == {"record"}
  file.unlink()
  with pytest.raises(UserError, match="^config.data.path="):
    sources.open_source("tfds", "train", str(folder))
  # ArrayRecord files of one's own: a record that is whole, but no example.
  folder = tmp_path / "arrayrecord"
  folder.mkdir()
  name = "photos-train.array_record-00000-of-00001"
  writer = array_record_module.ArrayRecordWriter(str(folder / name), "")
  (file,) = pathlib.Path(formats["tfds"][2]).glob("*array_record-*")
  records = array_record_module.ArrayRecordReader(str(file)).read_all()
  for record in (records[0], b"garbage", records[1]):
    writer.write(record)
  writer.close()
  place = ("arrayrecord", "all", str(folder))
  keys = ("captions/text",)
  source = sources.open_source(*place, Options(text_keys=keys))
  assert _bad(source) == ({1: "record"}, ["00000", "00001"])
  filters = Filters(min_score=0.0, score_key="score")
  options = Options(text_keys=keys, captions="all", filters=filters)
  source = sources.open_source(*place, options)
  assert source.filtered == {"no score": 1} and not _bad(source)[0]
  # Parquet: one page's bytes, then a file without its end.
  folder = tmp_path / "parquet"
  shutil.copytree(formats["parquet"][2], folder)
  first, second = sorted(folder.iterdir())
  data = first.read_bytes()
  first.write_bytes(data[:40] + b"\xff" * 300 + data[340:])
  source = sources.open_source("parquet", "all", str(folder))
  kinds, names = _bad(source)
  assert set(kinds.values()) <= {"record", "caption", "image"} and kinds
  assert set(kinds) <= set(range(4))
  second.write_bytes(second.read_bytes()[:-100])
  options = Options(max_skipped=0.5)
  source = sources.open_source("parquet", "all", str(folder), options)
  assert [f.kind for f in source.faults] == ["record"]


def test_empty_captions_and_wrong_json_are_named(tmp_path, images):
  data = images["00000"][0]
  with tarfile.open(tmp_path / "a.tar", "w") as tar:
    for name, content in {
      "0.jpg": data,
      "0.txt": b"good",
      "1.jpg": data,
      "1.txt": b" \n",
      "2.jpg": data,
      "3.jpg": data,
      "3.txt": b"x",
      "3.json": b"{",
      "4.txt": b"no image",
      "4.json": b"{}",
    }.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  source = sources.open_source("tar", "all", str(tmp_path / "a.tar"))
  kinds, names = _bad(source)
  assert kinds == {1: "caption", 2: "caption", 3: "record", 4: "image"}
  assert names == ["0"]
  every = sources.open_source(
    "tar", "all", str(tmp_path / "a.tar"), Options(captions="all")
  )
  assert every.filtered == {"no caption": 3} and len(every) == 2


class _Server(http.server.SimpleHTTPRequestHandler):
  """Serves a folder, ranges too; fails as often as it is told."""

  fail, asked = 0, None

  def do_GET(self):
    if type(self).fail > 0:
      type(self).fail -= 1
      return self.send_error(503)
    path = pathlib.Path(self.translate_path(self.path))
    if not path.is_file():
      return super().do_GET()
    data = path.read_bytes()
    wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
    self.send_response(206 if wanted else 200)
    part = data
    if wanted:
      start, stop = int(wanted[1]), int(wanted[2] or len(data) - 1) + 1
      part = data[start:stop]
      total = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
      self.send_header("Content-Range", total)
    if type(self).asked is not None:
      type(self).asked.append(len(part))
    self.send_header("Content-Length", str(len(part)))
    self.send_header("Last-Modified", self.date_time_string(1e9))
    self.send_header("Accept-Ranges", "bytes")
    self.end_headers()
    self.wfile.write(part)

  def do_HEAD(self):
    if type(self).fail > 0:
      type(self).fail -= 1
      return self.send_error(503)
    return super().do_HEAD()

  def log_message(self, *args):
    pass


@contextlib.contextmanager
def serving(folder):
  """Gives (address, handler class) of a server in a thread."""
  handler = type("Handler", (_Server,), {})
  make = functools.partial(handler, directory=str(folder))
  with http.server.ThreadingHTTPServer(("localhost", 0), make) as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
      yield f"http://localhost:{server.server_port}", handler
    finally:
      server.shutdown()


def test_shards_are_read_over_http_in_ranges(formats, images):
  with serving(formats["tar"][2]) as (address, handler):
    pattern = f"{address}/{{00000..00002}}.tar"
    source = sources.open_source("tar", "all", pattern)
    assert_same(source, images)
    handler.asked = []
    source[17]
    shard = pathlib.Path(formats["tar"][2]) / "00001.tar"
    assert len(handler.asked) == 1
    assert handler.asked[0] < shard.stat().st_size / 5


def test_storage_that_comes_back_is_waited_for_and_counted(formats):
  with serving(formats["tar"][2]) as (address, handler):
    source = sources.open_source("tar", "all", f"{address}/00000.tar")
    take_retries()
    handler.fail = 3
    assert plain(source[2].name) == "00002"
    assert take_retries() == 1
    handler.fail = 8  # As it does when the shard is looked for.
    assert len(sources.open_source("tar", "all", f"{address}/00001.tar")) == 10
    missing = f"{address}/{{00000..00009}}.tar"
    options = Options(max_skipped=0.9)
    faults = sources.open_source("tar", "all", missing, options).faults
    assert [fault.kind for fault in faults] == 7 * ["missing"]


def test_storage_that_stays_away_costs_the_example(formats):
  with serving(formats["tar"][2]) as (address, handler):
    options = Options(retry_seconds=0.3)
    place = "tar", "all", f"{address}/00000.tar"
    source = sources.open_source(*place, options)
    handler.fail = 10**6
    with pytest.raises(
      BadExample, match="not reached in 3 tries over 0.3 s"
    ) as e:
      source[2]
    assert e.value.kind == "storage"
    with pytest.raises(UserError, match="not reached in 3 tries"):
      sources.open_source(*place, options)


@pytest.mark.parametrize("label", ["csv", "tar", "parquet", "tfds"])
def test_every_format_is_read_from_remote_storage(formats, images, label):
  name, split, path = formats[label]
  fs = fsspec.filesystem("memory")
  fs.put(path, f"/{label}", recursive=True)
  source = sources.open_source(name, split, f"memory://{label}")
  assert_same(source, images)


def test_tricky_images_in_a_shard_are_read_or_named(shared_data, tmp_path):
  files = sorted((shared_data / "tricky").iterdir())
  files = [f for f in files if f.suffix not in (".csv", ".txt")]
  with tarfile.open(tmp_path / "0.tar", "w") as tar:
    for number, file in enumerate(files):
      tar.add(file, f"{number:03d}.jpg")
      text = tarfile.TarInfo(f"{number:03d}.txt")
      text.size = len(file.name)
      tar.addfile(text, io.BytesIO(file.name.encode()))
  source = sources.open_source("tar", "all", str(tmp_path))
  bad = set()
  for index, file in enumerate(files):
    assert source[index].texts == (file.name,)
    assert source[index].image == file.read_bytes()
    try:
      images_module.decode(file.read_bytes())
    except BadExample:
      bad.add(index)
  batches = pipeline.train_batches(
    source,
    [
      loading.OneByOne(
        lambda example, rng: {"n": images_module.decode(example.image).ndim},
        {"n": "int64"},
      )
    ],
    batch_size=len(files),
    seed=0,
    num_threads=0,
  )
  batch = next(batches)
  batches.close()
  found = {f.index: f.kind for f in faults.from_rows(batch["skipped"])}
  assert found == dict.fromkeys(bad, "image") and len(bad) > 5
