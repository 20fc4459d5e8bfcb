"""The tools, on a run that this test trains."""

import csv
import json
import os
import shutil
import subprocess
import sys

import programs
import pytest
import runs

from big_siglip.metrics import read_metrics


@pytest.fixture(scope="module")
def workdir(short_run, tmp_path_factory):
  folder = tmp_path_factory.mktemp("tools") / "run"
  shutil.copytree(short_run, folder)
  return folder


def evaluate(*arguments, processes=1, devices=1):
  """Returns the JSON object of tools/evaluate.py, run as several processes."""
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
  if processes > 1:
    arguments = ["--distributed", *arguments]
    environment["JAX_COORDINATOR_ADDRESS"] = f"localhost:{runs.free_port()}"
    environment["JAX_NUM_PROCESSES"] = str(processes)
  running = [
    subprocess.Popen(
      [sys.executable, "tools/evaluate.py", "--json", *arguments],
      cwd=runs.ROOT,
      env={**environment, "JAX_PROCESS_ID": str(number)},
      stdout=subprocess.PIPE,
      text=True,
    )
    for number in range(processes)
  ]
  outputs = [process.communicate(timeout=300)[0] for process in running]
  assert [process.returncode for process in running] == [0] * processes
  # What connects the processes prints lines, too.
  found = [line for text in outputs for line in text.splitlines()]
  (line,) = [line for line in found if line.startswith("{")]
  return json.loads(line)


def test_evaluate_repeats_what_training_measured(workdir, tmp_path):
  """Two processes of two devices say to the last bit what one device said."""
  file = tmp_path / "rows.csv"
  flags = [f"--checkpoint={workdir}", f"--rows={file}"]
  answer = evaluate(*flags, processes=2, devices=2)
  with file.open(newline="") as stream:
    table = list(csv.DictReader(stream))
  right = sum(row["right"] == "true" for row in table) / 360
  assert len({row["key"] for row in table}) == 360
  assert right == answer["evals/test/accuracy"]
  trained = {k: v for m in read_metrics(workdir) for k, v in m.items()}
  assert answer.pop("step") == 6
  assert set(answer) > {"evals/test/accuracy", "evals/test/per_class"}
  assert answer.pop("evals/test/images") == 360
  limits = [answer.pop(f"evals/test/accuracy_{end}") for end in ("low", "high")]
  assert 0 < limits[0] < answer["evals/test/accuracy"] < limits[1] < 1
  measured = {k: v for k, v in trained.items() if k.startswith("evals/")}
  assert measured == {k: v for k, v in answer.items() if k in measured}


@pytest.mark.slow
def test_every_kind_is_the_same_on_any_devices_and_processes(workdir):
  arguments = [
    f"--checkpoint={workdir}",
    f"--evals={runs.ROOT / 'configs' / 'evals' / 'digits.py'}",
  ]
  one = evaluate(*arguments)
  assert len(one) > 50 and all(value is not None for value in one.values())
  for processes, devices in ((1, 8), (2, 2)):
    assert evaluate(*arguments, processes=processes, devices=devices) == one


def test_evaluate_watches_alone(workdir):
  flags = [f"--watch={workdir}", "--distributed"]
  said = programs.said_in_one_line("tools/evaluate.py", *flags)
  assert "--watch: must be one process" in said


def test_evaluate_takes_other_evaluators(workdir):
  status, output, _ = programs.call(
    "tools/evaluate.py",
    f"--checkpoint={workdir}/checkpoints/6",
    f"--config={runs.CONFIG}",
    *runs.overrides(evals__test__kind="retrieval"),
  )
  assert status == 0
  assert "image_to_text/recall@1" in output


def test_evaluate_takes_evaluations_from_files(workdir, tmp_path):
  """Classes, prompts and answers from files; results in files."""
  (tmp_path / "prompts.txt").write_text("a scan of {}\n{}\n")
  words = "nil one two three four five six seven eight nine"
  words = words.split()
  (tmp_path / "classes.json").write_text(json.dumps([[w] for w in words]))
  (tmp_path / "evals.py").write_text(
    "from configs.evals import digits\n"
    "def get_config():\n"
    "  c = digits.get_config()\n"
    "  for name in set(c) - {'zeroshot', 'health'}:\n"
    "    del c[name]\n"
    "  c.zeroshot.templates = ()\n"
    "  return c\n"
  )
  status, output, said = programs.call(
    "tools/evaluate.py",
    f"--checkpoint={workdir}",
    f"--evals={tmp_path}/evals.py",
    f"--evals.zeroshot.templates_file={tmp_path}/prompts.txt",
    f"--evals.zeroshot.classes_file={tmp_path}/classes.json",
    f"--output={tmp_path}/out",
  )
  assert status == 0, said
  for line in ("zeroshot", "duplicates/captions", "health.png"):
    assert line in output
  written = json.loads((tmp_path / "out" / "results.json").read_text())
  details = written["evaluations"]["zeroshot"]["details"]
  assert details["classes"] == words
  png = (tmp_path / "out" / "zeroshot.png").read_bytes()
  assert png.startswith(b"\x89PNG")


@pytest.mark.parametrize(
  "name,arguments,said",
  [
    ("evaluate", [], "--checkpoint=RUN or --watch=RUN must be given"),
    ("evaluate", ["--checkpoint=nowhere"], "nowhere: no such file or folder"),
    ("evaluate", ["--checkpoint=x", "--evals=y.py"], "--evals=y.py: no such"),
  ],
)
def test_a_mistake_is_one_line(name, arguments, said):
  assert said in programs.said_in_one_line(f"tools/{name}.py", *arguments)
