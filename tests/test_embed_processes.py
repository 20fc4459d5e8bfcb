"""Several processes make and update one folder of embeddings, as one would."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import runs
from test_embed import embed, make_model
from test_update import assert_is_of, make_photos, rows_of, write_photo

pytestmark = pytest.mark.slow


def start_pair(output, *flags):
  """Starts the two processes of one `embed`; the second is another host's."""
  names = {
    "JAX_COORDINATOR_ADDRESS": f"localhost:{runs.free_port()}",
    "JAX_NUM_PROCESSES": "2",
    "JAX_NUM_CPU_DEVICES": "1",
  }
  return [
    subprocess.Popen(
      [sys.executable, "tools/embed.py", f"--output={output}", *flags],
      cwd=runs.ROOT,
      env={**os.environ, **names, "JAX_PROCESS_ID": str(number)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in range(2)
  ]


def finish(pair):
  """Waits for both; returns what the first one printed."""
  ends = [process.communicate(timeout=300) for process in pair]
  assert [process.returncode for process in pair] == [0, 0], ends
  assert "images" not in ends[1][0], "one speaks for all"
  return ends[0][0]


def kill_one(pair, number, there, enough):
  """Kills a process once `there` finds enough files; the other one ends."""
  while len(list(there())) < enough:
    assert all(process.poll() is None for process in pair)
    time.sleep(0.001)
  pair[number].kill()
  other = pair[1 - number]
  said = other.communicate(timeout=300)[1]
  assert pair[number].wait() == -signal.SIGKILL
  pair[number].communicate()
  assert other.returncode != 0, said
  return other.returncode, said


def test_two_processes_make_and_update_one_folder(tmp_path):
  checkpoint = make_model(tmp_path / "model")
  photos = make_photos(tmp_path / "photos", 400)
  output, alone = tmp_path / "out", tmp_path / "alone"
  flags = [f"--checkpoint={checkpoint}", f"--images={photos}", "--distributed"]
  sizes = ["--shard_size=10", "--batch_size=10"]

  # One is lost while the folder is made: what is written stays.
  status, said = kill_one(
    start_pair(output, *flags, *sizes),
    1,
    lambda: output.glob("shard-*.parquet"),
    4,
  )
  assert status == 75, said
  assert "another process was lost" in said
  before = {f.name: f.stat().st_mtime_ns for f in output.glob("shard-*")}
  assert 4 <= len(before) < 41
  finish(start_pair(output, *flags, *sizes))
  after = {f.name: f.stat().st_mtime_ns for f in output.glob("shard-*")}
  assert before.items() <= after.items()
  assert_is_of(output, checkpoint, photos)
  embed(checkpoint, alone, f"--images={photos}", *sizes)
  found, expected = rows_of(output), rows_of(alone)
  for key, row in expected.items():
    np.testing.assert_allclose(
      found[key].pop("embedding"), row.pop("embedding"), atol=1e-6
    )
  assert found == expected

  # And while it is updated, the first one now: it stays the old one.
  for number in range(0, 400, 3):
    write_photo(photos / f"{number}.png", 1000 + number)
  for number in range(400, 440):
    write_photo(photos / f"{number}.png", number)
  (photos / "7.png").unlink()
  old = rows_of(output)
  pair = start_pair(output, *flags, "--update")
  kill_one(pair, 0, lambda: output.glob(".shard-*.parquet.*"), 4)
  assert rows_of(output) == old
  printed = finish(start_pair(output, *flags, "--update"))
  assert "40 new, 134 changed, 1 dropped" in printed
  assert_is_of(output, checkpoint, photos)
  assert not list(output.glob(".shard-*"))
