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

from big_siglip.datasets import scenes_draw
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


def write_evals(folder, first, baselines):
  """Writes scenes with masks, and a file of evaluations; returns its path.

  Args:
    folder: to write to.
    first: code of the first evaluations, a ConfigDict `c`.
    baselines: whether pixels and a random tower are measured as well.
  """
  for name in ("images", "masks"):
    (folder / "scenes" / name).mkdir(parents=True)
  for number in range(24):
    scene = scenes_draw.train_example(number)
    for name, data in (("images", scene.image), ("masks", scene.mask)):
      file = folder / "scenes" / name / f"{number:02}.png"
      file.write_bytes(data)
  # No multiple of the processes, and one that is bad.
  (folder / "scenes" / "masks" / "05.png").write_bytes(b"none")
  classes = "configs/classes/scenes_colours.json"
  masks = dict(classes_file=classes, baselines=baselines)
  lines = [f"own = {dict(path=str(folder / 'scenes'), batch_size=6)}", first]
  for kind, fields in (
    ("segmentation", dict(split="all", **masks)),
    ("segmentation_probe", dict(split="all", train_split="all", **masks)),
    ("patch_retrieval", dict(split="all", train_split="all", **masks)),
    ("correspondence", dict(split="all", baselines=baselines)),
  ):
    lines.append(f"c.{kind} = dense.{kind}(**own, **{fields})")
  text = "".join(f"  {line}\n" for line in [*lines, "return c"])
  file = folder / "evals.py"
  file.write_text(
    "import json\nfrom ml_collections import ConfigDict\n"
    f"from configs import dense\nfrom configs.evals import digits\n"
    f"def get_config():\n{text}"
  )
  return file


def assert_patches_alike(found, expected):
  """Figures of patches are counts of pixels and points: no bit may differ."""
  found, expected = (
    {k: v for k, v in one.items() if "/miou" in k or "pck@" in k or "skip" in k}
    for one in (found, expected)
  )
  assert len(found) >= 13 and found == expected
  assert found["evals/segmentation/skipped"] == 1


def test_evaluate_repeats_what_training_measured(workdir, tmp_path):
  """Two processes of two devices say to the last bit what one device said.

  Of patches, whose masks only the process has that read them, what this process
  says on all its devices.
  """
  trained = json.loads((workdir / "config.json").read_text())["evals"]
  made = (
    f"c = ConfigDict({{'test': json.loads({json.dumps(trained['test'])!r})}})"
  )
  evals = write_evals(tmp_path, made, baselines=False)
  file = tmp_path / "rows.csv"
  flags = [f"--checkpoint={workdir}", f"--evals={evals}"]
  answer = evaluate(*flags, f"--rows={file}", processes=2, devices=2)
  status, here, said = programs.call("tools/evaluate.py", "--json", *flags)
  assert status == 0, said
  assert_patches_alike(answer, json.loads(here))
  kinds = ("patch", "seg", "corr")
  answer = {
    k: v
    for k, v in answer.items()
    if not k.startswith("evals/")
    or not k.removeprefix("evals/").startswith(kinds)
  }
  with (tmp_path / "rows-test.csv").open(newline="") as stream:
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
def test_every_kind_is_the_same_on_any_devices_and_processes(workdir, tmp_path):
  evals = write_evals(tmp_path, "c = digits.get_config()", baselines=True)
  arguments = [f"--checkpoint={workdir}", f"--evals={evals}"]
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
