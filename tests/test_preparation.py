"""Preparing data sets, all but Beam: test_prepare.py has the program whole."""

import collections
import csv
import dataclasses
import gzip
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile

from etils import epath
import image_server
import numpy as np
from PIL import Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
import wit_cases

from big_siglip.data import images, sources
from big_siglip.errors import RunStopped, UserError
from big_siglip.preparation import parquet, shards, stages, tars, wit
from big_siglip.preparation.filters import Filters
from big_siglip.preparation.folder import Folder
from big_siglip.preparation.job import make_job
from big_siglip.preparation.origins import Limits
from big_siglip.preparation.records import ImageLimits, key_of, Tally

LIMITS = Limits(
  user_agent="test/1.0 (me@example.org)",
  requests_per_second=500,
  retries=0,
  timeout=0.3,
  max_seconds=0.5,
  allow=("127.0.0.1",),
)
SIZES = ImageLimits(max_bytes=1_000_000, max_pixels=1_000_000)


def read_wit(file, captions=wit.CAPTIONS, **filters):
  tally = Tally()
  rows = wit.read(epath.Path(file), captions, Filters(**filters), tally)
  return [record for _, record in rows], tally


def run(job):
  """Does with plain loops what Beam does; returns (folder, counts)."""
  folder = Folder(job)
  with folder.lock():
    folder.begin()
    if job.kind == "wit" and folder.missing_rows():
      groups = {number: [] for number in range(job.num_shards)}
      for number in reversed(range(len(job.inputs))):  # Any order will do.
        for shard, row in stages.read_rows(number, folder, groups):
          groups[shard].append(row)
      for group in groups.items():
        stages.write_rows(group, folder)
    if job.kind == "wit" and not folder.fetched_file.exists():
      hosts = collections.defaultdict(list)
      for number in range(job.num_shards):
        for host, url in stages.unsettled(number, folder):
          hosts[host].append(url)
      for group in hosts.items():
        stages.fetch_host(group, folder)
      folder.fetched_file.write_bytes(b"")
    for number in folder.missing_parts():
      stages.write_part(number, folder)
    return folder, folder.finish()


def contents(folder):
  files = (f for f in pathlib.Path(folder).rglob("*") if f.is_file())
  return {f.name: f.read_bytes() for f in files if f.name != ".lock"}


@dataclasses.dataclass
class Example:
  image: bytes
  texts: tuple[str, ...]
  name: str


def open_split(folder, split="train"):
  """Returns (what TFDS decodes, the same with the images' own bytes)."""
  builder = tfds.builder_from_directory(folder)
  decoders = {"image": tfds.decode.SkipDecoding()}
  examples = [
    Example(
      record["image"],
      tuple(text.decode() for text in record["captions"]),
      record["name"].decode(),
    )
    for record in builder.as_data_source(split=split, decoders=decoders)
  ]
  return builder.as_data_source(split=split), examples


def report(folder):
  lines = (pathlib.Path(folder) / "prepare_report.jsonl").read_text()
  return [json.loads(line) for line in lines.splitlines()]


def test_wit_rows_are_read_as_they_were_written(tmp_path):
  url = "https://upload.wikimedia.org/wikipedia/commons/5/5f/Ox%20(1).jpg"
  rows = [
    wit_cases.row(
      url,
      caption_reference_description='a "quoted" one,\twith a tab and\na line',
      caption_attribution_description="English: an ox",
      caption_alt_text_description="ochse",
    ),
    wit_cases.row(url, "de", attribution_passes_lang_id="false"),
  ]
  rows[1]["caption_attribution_description"] = "日本語"
  table = wit_cases.write_table(tmp_path / "a.tsv.gz", rows)
  (first, second), tally = read_wit(table)
  assert [c.text for c in first.captions] == [
    'a "quoted" one, with a tab and a line',
    "English: an ox",
    "ochse",
  ]
  assert {c.language for c in first.captions} == {"en"}
  assert first.captions[0].page_url == "https://en.wikipedia.org/wiki/Page"
  assert first.attribution == "English: an ox" and first.name == url
  assert first.metadata_url == (
    "https://commons.wikimedia.org/wiki/File:Ox%20(1).jpg"
  )
  # WIT's own language detection says whether an attribution is in it.
  assert [c.language for c in second.captions] == ["de", ""]
  assert dict(tally.counts) == {"rows": 2}
  (one,), tally = read_wit(table, languages=("de",))
  assert [c.text for c in one.captions] == ["a picture in de"]
  assert tally.counts["filtered: row's language"] == 1
  (merged,) = wit.merge([first, second])
  assert [c.language for c in merged.captions] == ["en", "en", "en", "de", ""]
  titles, _ = read_wit(table, ("page_title", "context_page_description"))
  assert [c.text for c in titles[0].captions] == [
    "Page",
    'It says "tab " and a new line.',
  ]


@pytest.mark.parametrize(
  "filters, fields, reason",
  [
    (dict(min_size=31), {}, "image too small"),
    (dict(max_aspect=1.3), {}, "aspect"),
    ({}, dict(mime_type="image/svg+xml"), "mime type"),
    (dict(min_caption=20), {}, "caption too short"),
    (dict(max_caption=10), {}, "caption too long"),
    ({}, dict(caption_reference_description="  "), "no caption left"),
  ],
)
def test_filters_drop_and_count(tmp_path, filters, fields, reason):
  rows = [wit_cases.row("http://x/a.jpg", **fields)]
  table = wit_cases.write_table(tmp_path / "a.tsv.gz", rows)
  records, tally = read_wit(table, **filters)
  assert not records and not tally.faults
  assert tally.counts[f"filtered: {reason}"] == 1
  kept = dict(min_size=30, max_aspect=1.34, min_caption=15, max_caption=15)
  rows = [wit_cases.row("http://x/a.jpg")]
  table = wit_cases.write_table(tmp_path / "b.tsv.gz", rows)
  assert len(read_wit(table, **kept)[0]) == 1


def test_long_texts_pass(tmp_path):
  row = wit_cases.row("http://x/a", context_section_description="x" * 200_000)
  table = wit_cases.write_table(tmp_path / "a.tsv.gz", [row])
  csv.field_size_limit(131_072)  # As a process starts.
  wit.check_file(epath.Path(table), ())


def test_urls_that_are_none_stop_no_table(tmp_path):
  urls = ["http://[bad/a.jpg", "http://a\u2100b.org/a.jpg", "http://x/a.jpg"]
  table = wit_cases.write_table(tmp_path / "a.tsv.gz", map(wit_cases.row, urls))
  records, _ = read_wit(table)  # Their fault is told when they are asked for.
  assert [r.name for r in records] == urls


def test_bad_rows_of_wit_are_listed_and_the_rest_is_read(tmp_path):
  good = wit_cases.row("http://x/good.jpg", context_page_description="")
  rows = [
    {**good, "original_width": "wide"},
    {**good, "image_url": ""},
    good,
    {"language": "en\tand\tmore" + "\t" * 20},
    good,
  ]
  file = tmp_path / "a.tsv.gz"
  wit_cases.write_table(file, rows)
  text = gzip.decompress(file.read_bytes()).decode().splitlines()
  text[4] = text[4].replace('"', "")  # More fields than there are columns.
  text.append("en\tonly two")
  file.write_bytes(gzip.compress("\n".join(text).encode()))
  records, tally = read_wit(file)
  assert len(records) == 2 and tally.counts["fault: bad_row"] == 4
  places = [fault["where"] for fault in tally.faults]
  assert places == [f"a.tsv.gz line {line}" for line in (2, 3, 5, 7)]


def test_a_table_that_ends_early_is_read_up_to_there(tmp_path):
  rows = [wit_cases.row(f"http://x/{key_of(str(i))}.jpg") for i in range(3_000)]
  file = tmp_path / "a.tsv.gz"
  wit_cases.write_table(file, rows)
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  records, tally = read_wit(file)
  assert 500 < len(records) < 2_500
  assert [f["kind"] for f in tally.faults] == ["damaged_shard"]
  assert "and all after it" in tally.faults[0]["where"]


@pytest.mark.parametrize("as_structs", [True, False])
def test_wit_base_has_captions_of_all_its_articles(tmp_path, as_structs):
  urls = [f"http://x/{number}.jpg" for number in range(4)]
  file = epath.Path(tmp_path / "a.parquet")
  wit_cases.write_wit_base(file, urls, as_structs)
  columns = parquet.find_columns(file, (), None, True, ())
  assert "embedding" not in columns.all
  tally = Tally()
  records = list(parquet.read(file, columns, Filters(), tally, SIZES))
  assert [r.name for r in records] == urls and not tally.faults
  assert [(c.text, c.language) for c in records[1].captions] == [
    ("a reference", "en"),
    ("English: number 1", "en"),
    ("English: number 1", ""),
    ("ein Bild", "de"),
  ]
  assert records[1].image == image_server.picture(1)
  assert records[1].metadata_url.endswith("File:1.jpg")
  only = Filters(languages=("de",))
  (record, *_) = parquet.read(file, columns, only, tally, SIZES)
  assert [c.text for c in record.captions] == ["ein Bild"]


def test_parquet_of_any_columns(tmp_path):
  file = epath.Path(tmp_path / "a.parquet")
  table = {
    "jpg": [
      {"bytes": image_server.picture(1), "path": None},
      {"bytes": None, "path": "lost.jpg"},
      {"bytes": b"GIF89a, or so it says", "path": None},
      {"bytes": image_server.picture(4)[:-300], "path": None},
      {"bytes": image_server.bomb(), "path": None},
      {"bytes": image_server.picture(6, "WEBP"), "path": None},
    ],
    "text": [["one", "two", "one"]] + [["x"]] * 4 + [["last"]],
    "lang": ["en"] * 6,
    "url": ["http://x/1.jpg"] * 6,
    "license": ["CC0"] * 6,
  }
  pq.write_table(pa.table(table), file, row_group_size=6)
  columns = parquet.find_columns(file, (), None, False, ("en",))
  tally = Tally()
  records = list(parquet.read(file, columns, Filters(), tally, SIZES))
  assert [r.name for r in records] == ["a.parquet/0", "a.parquet/5"]
  first = records[0]
  assert [(c.text, c.language) for c in first.captions] == [
    ("one", "en"),
    ("two", "en"),
  ]
  assert (first.license, first.image_url) == ("CC0", "http://x/1.jpg")
  assert [f["kind"] for f in tally.faults] == [
    "no_image",
    "not_an_image",
    "broken_image",
    "too_many_pixels",
  ]
  assert tally.faults[1]["where"] == "a.parquet row 2"


def test_a_damaged_row_group_costs_only_itself(tmp_path):
  file = tmp_path / "a.parquet"
  wit_cases.write_wit_base(file, [f"http://x/{i}" for i in range(9)])
  group = pq.ParquetFile(file).metadata.row_group(1)
  start = group.column(0).dictionary_page_offset or (
    group.column(0).data_page_offset
  )
  data = bytearray(file.read_bytes())
  data[start : start + 40] = b"\xff" * 40
  file.write_bytes(bytes(data))
  path, tally = epath.Path(file), Tally()
  columns = parquet.find_columns(path, (), None, True, ())
  records = list(parquet.read(path, columns, Filters(), tally, SIZES))
  assert [r.name[-1] for r in records] == list("012678")
  (fault,) = tally.faults
  assert fault["kind"] == "damaged_row_group"
  assert fault["where"] == "a.parquet rows 3 to 5"


def test_text_that_is_no_utf8_costs_only_its_row(tmp_path):
  file = epath.Path(tmp_path / "a.parquet")
  images = [image_server.picture(i) for i in range(5)]
  wit_cases.write_odd_parquet(file, images)
  columns, tally = parquet.find_columns(file, (), None, False, ()), Tally()
  records = parquet.read(file, columns, Filters(), tally, SIZES)
  assert [r.captions[0].text for r in records] == list("0234")
  (fault,) = tally.faults
  assert (fault["kind"], fault["where"]) == ("bad_row", "a.parquet row 1")


def test_tar_shards_of_img2dataset(tmp_path):
  file = epath.Path(tmp_path / "00000.tar")
  meta = dict(
    caption="of the json", url="http://x/1", LICENSE="CC-BY", lang="de"
  )
  wit_cases.write_tar(
    file,
    {
      "d/0": dict(jpg=image_server.picture(0), txt="of the txt\n", json=meta),
      "d/1": dict(png=image_server.picture(1, "PNG"), json=meta),
      "2": dict(txt="no image here"),
      "3": dict(jpg=image_server.picture(3), json="{"),
      "4": dict(jpg=b"\xff\xd8\xff broken", txt="x"),
      "5": dict(jpg=bytes(1_000_001), txt="x"),
      "6": dict(jpg=image_server.picture(6), txt=" "),
      "7": dict(jpg=image_server.picture(7), json="[" * 100_000),
    },
  )

  def read(*captions):
    tally = Tally()
    return list(tars.read(file, captions, Filters(), tally, SIZES)), tally

  records, _ = read()
  assert [c.text for r in records for c in r.captions] == [
    "of the txt",
    "of the json",
  ]
  records, tally = read("txt", "caption")
  assert [r.name for r in records] == ["00000.tar/d/0", "00000.tar/d/1"]
  texts = [[c.text for c in r.captions] for r in records]
  assert texts == [["of the txt", "of the json"], ["of the json"]]
  assert (records[0].license, records[0].image_url) == ("CC-BY", "http://x/1")
  assert records[0].captions[0].language == "de"
  assert [(f["kind"], f["where"][-1]) for f in tally.faults] == [
    ("no_image", "2"),
    ("bad_json", "3"),
    ("not_an_image", "4"),
    ("too_large", "5"),
    ("bad_json", "7"),
  ]
  assert tally.counts["filtered: no caption left"] == 1


def test_a_tar_is_read_as_training_reads_it(tmp_path):
  turns = [
    {"from": "human", "value": "What is it?"},
    {"from": "gpt", "value": "A disc."},
  ]
  file = epath.Path(tmp_path / "00000.tar")
  wit_cases.write_tar(
    file,
    {
      "0": dict(jpg=image_server.picture(0), json={"TEXT": ["one", "two"]}),
      "1": dict(jfif=image_server.picture(1), json={"alt_text": "three"}),
      "2": dict(avif=image_server.picture(2, "AVIF"), txt="four"),
      "3": {"input.jpg": image_server.picture(3), "outputs.txt": "five"},
      "4": dict(jpg=image_server.picture(4), json={"turns": turns}),
      "5": {"0.jpg": b"x", "1.jpg": b"y", "txt": "six"},
    },
  )

  def read(*captions):
    tally, every = Tally(), Filters(mime_types=())
    found = list(tars.read(file, captions, every, tally, SIZES))
    return [[c.text for c in r.captions] for r in found], tally

  texts, tally = read()
  assert texts == [["one", "two"], ["three"], ["four"], ["five"]]
  assert tally.faults[0]["detail"] == "several could be it: 0.jpg, 1.jpg"
  assert read("turns/value")[0] == [["A disc."]]


@pytest.mark.parametrize("kind", [b"x", b"L", b"g", b"0"])
@pytest.mark.parametrize("size", [-5000, 2**62, 2**80, 2**36 - 1])
def test_hostile_headers_cost_what_follows_them(tmp_path, kind, size):
  file = epath.Path(tmp_path / "0.tar")
  wit_cases.write_tar(file, {"0": dict(jpg=image_server.picture(0), txt="x")})
  with tarfile.open(file) as tar:
    end = tar.getmembers()[-1].offset_data + 512
  header = bytearray(tarfile.TarInfo("1.jpg").tobuf(tarfile.GNU_FORMAT))
  sign = b"\xff" if size < 0 else b"\x80"
  header[124:136] = sign + (size % 2**88).to_bytes(11, "big")
  header[156:157] = kind
  header[148:156] = b" " * 8
  header[148:156] = b"%06o\0 " % sum(header)
  file.write_bytes(file.read_bytes()[:end] + bytes(header) + bytes(10_240))
  tally = Tally()
  list(tars.read(file, (), Filters(), tally, SIZES))
  (fault,) = tally.faults
  assert fault["kind"] == "damaged_shard"


def test_a_tar_that_tells_of_a_huge_file_is_given_up(tmp_path):
  file = epath.Path(tmp_path / "a.tar")
  with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as tar:
    info = tarfile.TarInfo("1.jpg")
    info.pax_headers = {"size": "9" * 20}
    tar.addfile(info)
  tally = Tally()
  assert not list(tars.read(file, (), Filters(), tally, SIZES))
  (fault,) = tally.faults
  assert fault["kind"] == "damaged_shard" and "999 bytes" in fault["detail"]


def test_keys_of_any_bytes_name_examples(tmp_path):
  key = b"\xff\xfe".decode("utf-8", "surrogateescape")
  file = str(tmp_path / "a.tar")
  with tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as tar:
    for suffix, data in (("jpg", image_server.picture(1)), ("txt", b"a text")):
      info = tarfile.TarInfo(f"{key}.{suffix}")
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  folder, _ = run(make_job("tar", [file], str(tmp_path / "out"), Filters()))
  (example,) = open_split(folder.path)[1]
  assert example.name == "a.tar/\\udcff\\udcfe"


def test_a_cut_tar_is_read_up_to_there(tmp_path):
  file = epath.Path(tmp_path / "a.tar")
  wit_cases.write_tar(
    file,
    {f"{i}": dict(jpg=image_server.picture(i), txt="x") for i in range(9)},
  )
  file.write_bytes(file.read_bytes()[:10_000])
  tally = Tally()
  records = list(tars.read(file, (), Filters(), tally, SIZES))
  assert [r.name for r in records] == [f"a.tar/{i}" for i in range(3)]
  (fault,) = tally.faults
  assert fault["kind"] == "damaged_shard" and "from 3 on" in fault["where"]


def test_a_tar_with_a_damaged_header_tells_what_is_lost(tmp_path):
  file = epath.Path(tmp_path / "a.tar")
  examples = {
    f"{i}": dict(jpg=image_server.picture(i), txt="x") for i in range(9)
  }
  wit_cases.write_tar(file, examples)
  with tarfile.open(file) as tar:
    start = tar.getmember("5.jpg").offset
  whole = file.read_bytes()
  for damaged in (
    whole[: start + 100],
    whole[:start] + b"?" * 512 + whole[start + 512 :],
    whole[:start] + b"?" + whole[start + 1 :],
  ):
    file.write_bytes(damaged)
    tally = Tally()
    records = list(tars.read(file, (), Filters(), tally, SIZES))
    assert [r.name for r in records] == [f"a.tar/{i}" for i in range(4)]
    (fault,) = tally.faults
    assert fault["kind"] == "damaged_shard" and "from 4 on" in fault["where"]


@pytest.fixture(scope="module")
def server():
  with image_server.serve() as server:
    yield server


def make_wit(tmp_path, rows, output="out", **options):
  half = len(rows) // 2
  files = [
    wit_cases.write_table(tmp_path / f"wit-{i}.tsv.gz", part)
    for i, part in enumerate((rows[:half], rows[half:]))
  ]
  options = {
    "num_shards": 3,
    "limits": LIMITS,
    "max_missing": 0.5,
    "of_images": SIZES,
    **options,
  }
  output = str(tmp_path / output)
  filters = options.pop("filters", Filters())
  return make_job("wit", files, output, filters, **options)


def test_wit_is_fetched_grouped_and_written(tmp_path, server):
  languages = ("en", "de", "fr")
  urls = [server.url(f"good/{number}.jpg") for number in range(20)]
  rows = [wit_cases.row(url, lang) for lang in languages for url in urls]
  bad = {
    "gone/1": "http_404",
    "html/2": "not_an_image",
    "secret/3": "robots",
    "cut/4": "truncated",
    "bomb/5": "too_many_pixels",
  }
  rows += [wit_cases.row(server.url(path)) for path in bad]
  # A record's split follows from its URL, and the server's port is any: with
  # a half each, one of two million runs leaves a split empty.
  job = make_wit(tmp_path, rows, test_share=0.5)
  folder, counts = run(job)
  assert {f["where"]: f["kind"] for f in report(job.output)} == {
    server.url(path): kind for path, kind in bad.items()
  }
  assert counts["rows"] == len(rows) and counts["examples"] == 20
  found = {}
  for split in shards.SPLITS:
    decoded, source = open_split(job.output, split)
    keys = [key_of(example.name) for example in source]
    assert keys == sorted(keys) and keys
    for index, example in enumerate(source):
      found[example.name] = example
      record = decoded[index]
      assert record["image"].shape == (30, 40, 3)
      assert [t.decode() for t in record["language"]] == list(languages)
      assert len(record["page_url"]) == 3
      assert record["image_url"].decode() == example.name
  assert set(found) == set(urls)
  for number, url in enumerate(urls):
    assert found[url].image == image_server.picture(number)
    assert found[url].texts == tuple(f"a picture in {x}" for x in languages)
  assert folder.is_finished and not (folder.path / "work").exists()
  info = json.loads((folder.path / "dataset_info.json").read_text())
  assert "metadata_url" in info["redistributionInfo"]["license"]
  # Another run from the first byte on gives the same bytes.
  again = make_wit(tmp_path, rows, "again", test_share=0.5)
  run(again)
  assert contents(again.output) == contents(job.output)


def test_what_failed_for_now_is_asked_for_again_and_nothing_else(tmp_path):
  with image_server.serve() as server:
    paths = [f"good/{i}" for i in range(6)] + ["once500/7", "once500/8"]
    rows = [wit_cases.row(server.url(path)) for path in paths]
    job = make_wit(tmp_path, rows, max_missing=0.2)
    with pytest.raises(RunStopped, match=r"2 of 8 images .*\(http_500\)"):
      run(job)
    assert not Folder(job).is_finished
    folder, counts = run(job)
    assert counts["examples"] == 8 and not report(job.output)
    asked = {path: server.requests[f"/{path}"] for path in paths}
    assert asked == {p: 2 if "once" in p else 1 for p in paths}
    names = [e.name for e in open_split(job.output)[1]]
    assert sorted(names) == sorted(map(server.url, paths))


def test_a_store_serves_several_data_sets(tmp_path):
  with image_server.serve() as server:
    urls = [server.url(f"good/{i}.jpg") for i in range(6)]
    urls.append(server.url("gone/1"))
    rows = [wit_cases.row(u, x) for u in urls for x in ("en", "de")]
    for output, language in (("first", "en"), ("second", "de")):
      filters = Filters(languages=(language,))
      store = str(tmp_path / "store")
      job = make_wit(tmp_path, rows, output, filters=filters, store=store)
      _, counts = run(job)
      assert counts["examples"] == 6 and counts["fault: http_404"] == 1
    asked = {p: n for p, n in server.requests.items() if p != "/robots.txt"}
    assert len(asked) == 7 and set(asked.values()) == {1}


def test_without_beam_the_program_says_what_to_install(tmp_path):
  table = wit_cases.write_table(
    tmp_path / "wit.tsv.gz", [wit_cases.row("http://x/1.jpg")]
  )
  command = [sys.executable, "tools/prepare.py", "wit", table]
  command += [f"--output={tmp_path / 'out'}", "--user_agent=a/1 (b@c.d)"]
  # As where it is not installed, wherever this runs.
  (tmp_path / "apache_beam.py").write_text("import no_apache_beam_here")
  root = pathlib.Path(__file__).resolve().parents[1]
  done = subprocess.run(
    command,
    cwd=root,
    env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
  assert "pip install 'big_siglip[prepare]'" in done.stderr
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("killed_after", [0, 1, 2])
def test_naming_the_shards_can_be_cut_off_anywhere(
  tmp_path, monkeypatch, killed_after
):
  file = wit_cases.write_wit_base(
    tmp_path / "a.parquet", [f"http://x/{i}.jpg" for i in range(12)]
  )
  second = tmp_path / "b.parquet"
  second.write_bytes(pathlib.Path(file).read_bytes())
  jobs = [
    make_job(
      "wit_base",
      [str(tmp_path / "*.parquet")],
      str(tmp_path / output),
      Filters(),
      test_share=0.3,
    )
    for output in ("whole", "cut")
  ]
  run(jobs[0])
  done, original = [], shards.part_name

  def part_name(split, number):
    if Folder(jobs[1]).missing_parts() == []:
      done.append(number)
      if len(done) > killed_after:
        raise KeyboardInterrupt
    return original(split, number)

  monkeypatch.setattr(shards, "part_name", part_name)
  with pytest.raises(KeyboardInterrupt):
    run(jobs[1])
  monkeypatch.undo()
  assert not Folder(jobs[1]).is_finished
  run(jobs[1])
  assert contents(jobs[1].output) == contents(jobs[0].output)


def error_of(kind="wit", inputs=(), output="out", limits=LIMITS, **options):
  filters = options.pop("filters", {})
  with pytest.raises(UserError) as e:
    make_job(
      kind,
      list(map(str, inputs)),
      str(output),
      Filters(**filters),
      limits=limits,
      **options,
    )
  assert "\n" not in str(e.value)
  return str(e.value)


def test_bad_input_gets_one_line(tmp_path):
  good = tmp_path / "good.tsv.gz"
  wit_cases.write_table(good, [wit_cases.row("http://x/1.jpg")])
  cases = {
    "empty.tsv.gz": (b"", "is empty"),
    "plain.tsv.gz": (b"language\tpage_url\n", "is not gzip"),
    "rowless.tsv.gz": (None, "holds no rows"),
    "cut.tsv.gz": (good.read_bytes()[:15], "cannot be read"),
  }
  wit_cases.write_table(tmp_path / "rowless.tsv.gz", [])
  for name, (data, expected) in cases.items():
    if data is not None:
      (tmp_path / name).write_bytes(data)
    assert expected in error_of(inputs=[tmp_path / name])
  columns = [c for c in wit_cases.COLUMNS if c != "image_url"]
  narrow = wit_cases.write_table(tmp_path / "narrow.tsv.gz", [{}], columns)
  assert "missing column image_url; it has: language" in error_of(
    inputs=[narrow]
  )
  assert "no such file" in error_of(inputs=[tmp_path / "no-*.gz"])
  assert "is a folder" in error_of(inputs=[tmp_path])
  assert "at least one input" in error_of()
  assert "--user_agent must be given" in error_of(inputs=[good], limits=None)
  assert "'klingon' must be one of WIT's 108" in error_of(
    inputs=[good], filters=dict(languages=("en", "klingon"))
  )
  assert "--captions: 'title' must be one of caption_ref" in error_of(
    inputs=[good], captions=("title",)
  )
  assert "--num_shards=0" in error_of(inputs=[good], num_shards=0)
  assert "--test_share=1" in error_of(inputs=[good], test_share=1)
  assert "--max_missing=2" in error_of(inputs=[good], max_missing=2)
  assert "--name='WIT 1'" in error_of(inputs=[good], name="WIT 1")
  for field, value in dict(
    min_size=0, max_aspect=0.5, min_caption=0, max_caption=0
  ).items():
    assert f"--{field}={value}" in error_of(filters={field: value})
  nan = error_of(filters=dict(max_aspect=float("nan")))
  assert "--max_aspect=nan: must be at least 1" in nan


def test_bad_parquet_and_tar_get_one_line(tmp_path):
  bad = tmp_path / "bad"
  bad.write_bytes(b"neither of them")
  assert "cannot be read as Parquet" in error_of("parquet", [bad])
  assert "cannot be read as tar" in error_of("tar", [bad])
  file = tmp_path / "a.parquet"
  pq.write_table(pa.table({"image": [b"x"], "label": [1]}), file)
  assert "missing column of captions (--captions)" in error_of(
    "parquet", [file]
  )
  assert "missing column of captions (--captions): title;" in error_of(
    "parquet", [file], captions=("title",)
  )
  assert "missing column of images (--image_column): photo" in error_of(
    "parquet", [file], image_column="photo"
  )
  assert "missing column of languages" in error_of(
    "parquet", [file], filters=dict(languages=("en",))
  )
  assert "missing column of wit_base" in error_of("wit_base", [file])
  assert "--num_shards=2: only of wit" in error_of(
    "parquet", [file], num_shards=2
  )
  for place in (dict(inputs=["x://a.parquet"]), dict(output="x://out")):
    assert "x:// is not supported here" in error_of(
      "parquet", **{"inputs": [file], **place}
    )
  (tmp_path / "b").mkdir()
  (tmp_path / "b" / "a.parquet").write_bytes(file.read_bytes())
  assert "have the same name" in error_of(
    "parquet", [file, tmp_path / "b" / "a.parquet"]
  )


def test_the_project_reads_it_by_name_language_and_size(tmp_path):
  meta = dict(lang="de", url="http://x/1")
  file = wit_cases.write_tar(
    tmp_path / "a.tar",
    {
      str(i): dict(
        jpg=image_server.picture(i, size=(40 + i, 30)), txt=f"{i}", json=meta
      )
      for i in range(4)
    },
  )
  job = make_job("tar", [file], str(tmp_path / "out"), Filters())
  run(job)
  every = sources.open_source("tfds", "train", job.output)
  assert [(e.texts, e.name) for e in every] == [
    ((f"{i}",), f"a.tar/{i}") for i in range(4)
  ]
  assert every[3].image == image_server.picture(3, size=(43, 30))
  for fields, count in (
    (dict(language="de"), 4),
    (dict(language="en"), 0),
    (dict(max_aspect=1.4), 3),
    (dict(min_size=31), 0),
  ):
    options = sources.Options(filters=sources.Filters(**fields))
    if count:
      found = sources.open_source("tfds", "train", job.output, options)
      assert len(found) == count
    else:
      with pytest.raises(UserError, match="filter"):
        sources.open_source("tfds", "train", job.output, options)


@pytest.mark.parametrize("kind", ["wit", "tar"])
def test_large_images_are_shrunk_to_their_shorter_side(tmp_path, server, kind):
  limits = ImageLimits(shrink_to=20)
  if kind == "wit":
    rows = [wit_cases.row(server.url(f"good/{i}.jpg")) for i in range(2)]
    job = make_wit(tmp_path, rows, of_images=limits)
  else:
    sizes = dict(a=(40, 30), b=(20, 30), c=(90, 21), d=(5, 90))
    members = {
      key: dict(png=image_server.picture(1, "PNG", size), txt="x")
      for key, size in sizes.items()
    }
    file = wit_cases.write_tar(tmp_path / "a.tar", members)
    output = str(tmp_path / "out")
    job = make_job("tar", [file], output, Filters(), of_images=limits)
  run(job)
  decoded, examples = open_split(job.output)
  shapes = [record["image"].shape[:2] for record in decoded]
  if kind == "wit":
    assert shapes == [(20, 27)] * 2
    return
  assert shapes == [(20, 27), (30, 20), (20, 86), (90, 5)]
  kept = [example.image[:4] == b"\x89PNG" for example in examples]
  assert kept == [False, True, False, True]
  # Shrunk as Pillow does; it is noise, of which JPEG keeps the brightness.
  original = Image.open(io.BytesIO(members["a"]["png"])).convert("RGB")
  expected = original.resize((27, 20), Image.Resampling.BICUBIC)
  grey = [
    np.asarray(image.convert("L")).astype(int)
    for image in (expected, Image.fromarray(decoded[0]["image"]))
  ]
  assert np.abs(grey[0] - grey[1]).mean() < 4 < grey[0].std() / 5


def test_a_folder_belongs_to_one_job(tmp_path):
  file = wit_cases.write_tar(
    tmp_path / "a.tar", {"1": dict(jpg=image_server.picture(1), txt="x")}
  )
  job = make_job("tar", [file], str(tmp_path / "out"), Filters())
  run(job)
  Folder(job).begin()  # It is its own.
  other = dataclasses.replace(job, filters=Filters(min_size=9))
  with pytest.raises(UserError, match="data set: its min_size is 1, not 9"):
    Folder(other).begin()
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "thesis.txt").write_text("")
  other = dataclasses.replace(job, output=str(tmp_path / "full"))
  with pytest.raises(UserError, match="full: holds something else"):
    Folder(other).begin()
  with Folder(job).lock(), pytest.raises(UserError, match="is being prepared"):
    Folder(job).lock()
  other = dataclasses.replace(job, output=str(tmp_path / "a.tar" / "out"))
  with pytest.raises(UserError, match="--output=.*Not a directory"):
    Folder(other).lock()
  other = dataclasses.replace(job, store=str(tmp_path / "a.tar" / "images"))
  with pytest.raises(UserError, match="--store=.*Not a directory"):
    Folder(other).begin()


def test_nothing_left_is_said_and_why(tmp_path):
  file = wit_cases.write_tar(
    tmp_path / "a.tar", {"1": dict(jpg=image_server.picture(1), txt="x")}
  )
  output = str(tmp_path / "out")
  job = make_job("tar", [file], output, Filters(min_size=99))
  with pytest.raises(RunStopped, match="no example is left"):
    run(job)
  summary = json.loads((tmp_path / "out" / "prepare_summary.json").read_text())
  assert summary["filtered: image too small"] == 1


def test_tricky_images_are_counted_by_kind_never_a_crash(shared_data, tmp_path):
  files = sorted((shared_data / "tricky").glob("[!I]*.*"))
  examples = {
    f"{i:03}": dict(jpg=file.read_bytes(), txt=file.name)
    for i, file in enumerate(files)
  }
  file = wit_cases.write_tar(tmp_path / "tricky.tar", examples)
  job = make_job("tar", [file], str(tmp_path / "out"), Filters())
  _, counts = run(job)
  faults = [f["kind"] for f in report(job.output)]
  filtered = counts.get("filtered: mime type", 0)
  assert counts["examples"] + len(faults) + filtered == len(files)
  assert counts["examples"] > 20 and len(set(faults)) >= 2
  for example in open_split(job.output)[1]:
    images.decode(example.image)
