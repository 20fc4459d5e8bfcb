"""starts.jsonl: a line a start, whatever ended the one before."""

import datetime
import json

from etils import epath
import jax

from big_siglip.run import starts


def _read(folder):
  text = (folder / starts.FILE).read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_a_start_says_when_on_what_and_with_what(tmp_path):
  starts.Starts(epath.Path(tmp_path), 0)
  (line,) = _read(tmp_path)
  began = datetime.datetime.fromisoformat(line["start"])
  age = datetime.datetime.now(datetime.UTC) - began
  assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=10)
  assert (line["devices"], line["processes"]) == (jax.device_count(), 1)
  assert line["device_kind"] == "cpu"
  assert line["versions"]["jax"] == jax.__version__
  assert line["commit"] is None or len(line["commit"]) >= 40


def test_the_last_line_follows_the_run(tmp_path):
  start = starts.Starts(epath.Path(tmp_path), 3)
  start.seen(20)
  start.seen(40)
  (line,) = _read(tmp_path)
  assert (line["first_step"], line["last_step"]) == (3, 40)
  assert line["last_seen"] >= line["start"]


def test_every_start_has_its_line_even_after_a_torn_one(tmp_path):
  starts.Starts(epath.Path(tmp_path), 0).seen(5)
  with (tmp_path / starts.FILE).open("a") as file:
    file.write('{"start": ')
  starts.Starts(epath.Path(tmp_path), 4).seen(9)
  first, _, second = (tmp_path / starts.FILE).read_text().splitlines()
  assert json.loads(first)["last_step"] == 5
  assert json.loads(second)["last_step"] == 9
