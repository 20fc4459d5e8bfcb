"""The tools, on a run that this test trains."""

import json
import shutil
import subprocess
import sys

import pytest
import runs

from big_siglip.metrics import read_metrics


@pytest.fixture(scope="module")
def workdir(short_run, tmp_path_factory):
  folder = tmp_path_factory.mktemp("tools") / "run"
  shutil.copytree(short_run, folder)
  return folder


def tool(name, *arguments):
  """Returns (exit status, standard output, standard error)."""
  done = subprocess.run(
    [sys.executable, f"tools/{name}.py", *arguments],
    cwd=runs.ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  return done.returncode, done.stdout, done.stderr


def test_evaluate_repeats_what_training_measured(workdir):
  status, output, _ = tool("evaluate", f"--checkpoint={workdir}", "--json")
  assert status == 0
  answer = json.loads(output)
  trained = {k: v for m in read_metrics(workdir) for k, v in m.items()}
  assert answer["step"] == 6
  # On one device as on four: at most one of 360 images may change sides.
  measured = answer["evals/test/accuracy"]
  assert abs(measured - trained["evals/test/accuracy"]) < 1.5 / 360


def test_evaluate_takes_other_evaluators(workdir):
  status, output, _ = tool(
    "evaluate",
    f"--checkpoint={workdir}/checkpoints/6",
    f"--config={runs.CONFIG}",
    *runs.overrides(evals__test__kind="retrieval"),
  )
  assert status == 0
  assert "image_to_text/recall@1" in output


def test_draw_writes_a_picture_and_a_table(workdir):
  status, output, _ = tool("draw", f"--workdir={workdir}")
  assert status == 0
  assert "evals/test/accuracy" in output
  assert (workdir / "summary.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
  "name,arguments,said",
  [
    ("evaluate", [], "--checkpoint=RUN or --watch=RUN must be given"),
    ("evaluate", ["--checkpoint=nowhere"], "no run with a checkpoint"),
    ("draw", ["--workdir=nowhere"], "no run with a checkpoint"),
  ],
)
def test_a_mistake_is_one_line(name, arguments, said):
  status, _, message = tool(name, *arguments)
  assert status == 2
  assert said in message
  assert len(message.strip().splitlines()) == 1
