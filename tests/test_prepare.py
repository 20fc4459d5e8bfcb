"""tools/prepare.py as its users run it: through Beam, and killed.

Skipped where Apache Beam is not installed: `make test-prepare` has it.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import image_server
import pytest
import test_preparation
import wit_cases

pytest.importorskip(
  "apache_beam", reason="Beam has an environment of its own: make test-prepare"
)

ROOT = pathlib.Path(__file__).resolve().parents[1]
contents = test_preparation.contents
FETCHING = (
  "--user_agent=test/1.0 (me@example.org)",
  "--requests_per_second=500",
  "--retries=2",
  "--backoff=0.01",
  "--timeout=0.5",
  "--max_seconds=1",
  "--max_bytes=1000000",
  "--allow=127.0.0.1",
)


def start(*arguments):
  return subprocess.Popen(
    [sys.executable, "tools/prepare.py", *map(str, arguments)],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def prepare(*arguments):
  """Returns (exit status, standard output, standard error)."""
  process = start(*arguments)
  printed, said = process.communicate(timeout=120)
  return process.returncode, printed, said


def kill_when(process, is_time, how=signal.SIGKILL):
  """Kills a program as soon as something is so; returns what it said."""
  deadline = time.monotonic() + 100
  while not is_time() and time.monotonic() < deadline:
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.002)
  process.send_signal(how)
  _, said = process.communicate()
  status = -how if how == signal.SIGKILL else 128 + how
  assert process.returncode == status, said
  return said


def test_every_fault_of_a_server_is_listed_and_the_rest_written(tmp_path):
  bad = {
    "gone/1": "http_404",
    "always500/1": "http_500",
    "tomorrow/1": "http_429",
    "stall/1": "timeout",
    "drip/1": "timeout",
    "circle/a": "redirect",
    "tofile": "redirect",
    "tometadata": "private_address",
    "html/2": "not_an_image",
    "cut/4": "truncated",
    "half/4": "broken_image",
    "huge/4": "too_large",
    "endless/4": "too_large",
    "bomb/5": "too_many_pixels",
    "secret/3": "robots",
  }
  with image_server.serve() as server:
    rows = [
      wit_cases.row(server.url(f"good/{number}"), language)
      for number in range(30)
      for language in ("en", "de")
    ]
    rows += [wit_cases.row(server.url(path)) for path in bad]
    rows += [wit_cases.row("http://10.0.0.1/a"), wit_cases.row("ftp://x/a")]
    for i in range(2):
      wit_cases.write_table(tmp_path / f"wit-{i}.tsv.gz", rows[i::2])
    arguments = (
      "wit",
      tmp_path / "wit-*.tsv.gz",
      f"--output={tmp_path / 'out'}",
      "--num_shards=4",
      "--json",
      "--max_missing=0.5",
      *FETCHING,
    )
    status, printed, said = prepare(*arguments)
    assert status == 0, said
    counts = json.loads(printed)
    assert counts["examples"] == 30 and counts["captions"] == 60
    found = test_preparation.report(tmp_path / "out")
    assert {f["where"]: f["kind"] for f in found} == {
      "http://10.0.0.1/a": "private_address",
      "ftp://x/a": "bad_url",
      **{server.url(path): kind for path, kind in bad.items()},
    }
    assert counts["fault: redirect"] == 2 and counts["fault: timeout"] == 2
    asked = server.requests.total()
    assert prepare(*arguments)[:2] == (0, printed)
    assert server.requests.total() == asked  # It was finished.
  _, source = test_preparation.open_split(tmp_path / "out")
  assert len(source) == 30 and source[0].texts == (
    "a picture in en",
    "a picture in de",
  )
  check = (
    "import sys, tensorflow_datasets as tfds;"
    f"b = tfds.builder_from_directory({str(tmp_path / 'out')!r});"
    "print(b.as_data_source(split='train')[0]['image'].shape);"
    "assert 'tensorflow' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)


def test_killed_again_and_again_wit_ends_the_same(tmp_path):
  with image_server.serve(delay=0.01) as server:
    paths = [f"good/{number}" for number in range(60)] + ["gone/1"]
    rows = [wit_cases.row(server.url(path)) for path in paths]
    table = wit_cases.write_table(tmp_path / "wit.tsv.gz", rows)

    def arguments(output):
      output = f"--output={tmp_path / output}"
      return "wit", table, output, "--num_shards=8", *FETCHING

    status, _, said = prepare(*arguments("whole"), "--passes=3")
    assert status == 0 and said.count("reading 1 files for") == 3
    server.requests.clear()
    images = tmp_path / "cut" / "work" / "images"
    saved = set()

    def now_saved():
      return {f.name for f in images.glob("*/*") if f.name[0] != "."}

    kills = {10: signal.SIGKILL, 30: signal.SIGINT, 50: signal.SIGKILL}
    for number, how in kills.items():
      process = start(*arguments("cut"))
      said = kill_when(process, lambda n=number: len(now_saved()) >= n, how)
      assert ("stopped; the same command" in said) == (how == signal.SIGINT)
      assert "Traceback" not in said
      assert len(now_saved()) < 61 and saved <= now_saved()
      saved = now_saved()
    status, _, said = prepare(*arguments("cut"))
    assert status == 0, said
    # Two connections: at most two images a kill were on their way.
    twice = [p for p in paths if server.requests[f"/{p}"] > 1]
    assert len(twice) <= 6 and max(server.requests.values()) <= 4
    assert sum(server.requests[f"/{p}"] for p in paths) <= 61 + 6
  assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
  assert not (tmp_path / "cut" / "work").exists()


def test_killed_while_writing_shards_it_goes_on(tmp_path):
  examples = [
    {
      f"{shard}-{i:03}": dict(
        jpg=image_server.picture(i, size=(600, 400)), txt=f"{shard} {i}"
      )
      for i in range(40)
    }
    for shard in range(4)
  ]
  for number, members in enumerate(examples):
    wit_cases.write_tar(tmp_path / f"{number}.tar", members)

  def arguments(output):
    files = tmp_path / "*.tar"
    return "tar", files, f"--output={tmp_path / output}", "--test_share=0.2"

  assert prepare(*arguments("whole"))[0] == 0
  parts = tmp_path / "cut" / "work" / "parts"
  written = {}
  for number in (1, 2):
    process = start(*arguments("cut"))
    kill_when(
      process,
      lambda n=number: (
        len([f for f in parts.glob("*.json") if f.name[0] != "."]) >= n
      ),
    )
    for file in parts.glob("*.json"):
      time_written = file.stat().st_mtime_ns
      assert written.setdefault(file.name, time_written) == time_written
  assert 2 <= len(written) < 4
  status, _, said = prepare(*arguments("cut"))
  assert status == 0, said
  assert f"writing {4 - len(written)} of 4 shards" in said
  assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
  _, source = test_preparation.open_split(tmp_path / "cut")
  _, test = test_preparation.open_split(tmp_path / "cut", "test")
  assert len(source) + len(test) == 160 and len(test) > 10
  names = [e.name for e in source]
  assert names == sorted(names)


@pytest.mark.parametrize("kind", ["wit_base", "parquet"])
def test_parquet_in_two_processes(tmp_path, kind):
  for number in range(3):
    urls = [f"http://x/{number}-{i}.jpg" for i in range(5)]
    wit_cases.write_wit_base(tmp_path / f"{number}.parquet", urls)
  options = {
    "wit_base": ("--languages=de",),
    "parquet": ("--captions=caption_attribution_description", "--name=photos"),
  }[kind]
  status, printed, said = prepare(
    kind,
    tmp_path / "*.parquet",
    f"--output={tmp_path / 'out'}",
    *options,
    "--",
    "--direct_num_workers=2",
    "--direct_running_mode=multi_processing",
  )
  assert status == 0, said
  assert f"{tmp_path / 'out'}: 15 examples, 15 captions" in printed
  decoded, source = test_preparation.open_split(tmp_path / "out")
  assert len(source) == 15 and source[14].image == image_server.picture(4)
  assert decoded[14]["image_url"] == b"http://x/2-4.jpg"
  expected = {
    "wit_base": ("ein Bild", "http://x/2-4.jpg"),
    "parquet": ("English: number 4", "2.parquet/4"),
  }[kind]
  assert (source[14].texts[0], source[14].name) == expected


@pytest.mark.parametrize(
  "arguments, expected",
  [
    ((), "command '': must be one of wit, wit_base, tar, parquet"),
    (("wit", "{table}"), "--output=FOLDER must be given"),
    (("wit", "{table}", "--output={out}"), "--user_agent must be given"),
    (("tar", "{table}x", "--output={out}"), "no such file"),
    (("tar", "gs://b/x.tar", "--output={out}"), "install gcsfs"),
    (
      ("wit", "{table}", "--output={out}", FETCHING[0], "--", "--runner=No"),
      "Beam's flags: Unexpected pipeline runner: No",
    ),
    (
      (
        *("wit", "{table}", "--output={out}", FETCHING[0], "--"),
        "--direct_num_workers=two",
      ),
      "Beam's flags: .*invalid int value: 'two'",
    ),
  ],
)
def test_mistakes_get_one_line(tmp_path, arguments, expected):
  table = wit_cases.write_table(
    tmp_path / "wit.tsv.gz", [wit_cases.row("http://10.0.0.1/a.jpg")]
  )
  places = dict(table=table, out=tmp_path / "out")
  status, _, said = prepare(*(a.format(**places) for a in arguments))
  assert status == 2 and len(said.splitlines()) == 1, said
  assert said.startswith("error: ")
  assert re.search(expected, said)
