"""The benchmark for GPUs, and programs that are lowered for one.

No GPU is needed: what is timed here is small, and is timed on a CPU.
"""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import programs
import pytest
import runs

from benchmarks import plain
from benchmarks.gpu import __main__ as benchmark
from benchmarks.gpu import child, models, needs, parts, steps, table
from big_siglip import build
from big_siglip.models import attention, backends
from big_siglip.plan import gpus

# What an image with JAX for CUDA may lack.
ABSENT = (
  *("PIL", "array_record", "braceexpand", "cv2", "fsspec", "grain"),
  *("google_crc32c", "matplotlib", "orbax", "pyarrow", "sentencepiece"),
  *("simplejpeg", "sklearn", "tensorflow_datasets", "tokenizers", "tqdm"),
)


def test_it_runs_with_little_more_than_jax():
  code = f"""
import sys
for name in {ABSENT}:
  sys.modules[name] = None
from benchmarks.gpu import __main__, attention, chip, ring, steps, torch_step
"""
  assert programs.start("-c", code) == (0, "", "")


def test_what_is_missing_is_named(monkeypatch):
  assert not needs.missing()
  monkeypatch.setitem(needs.NEEDS, "no_such_module", ("no-such-package", "1.0"))
  monkeypatch.setitem(needs.NEEDS, "jax", ("jax", "99.1"))
  assert needs.missing() == ["jax>=99.1", "no-such-package>=1.0"]


def test_without_a_gpu_nothing_is_measured():
  status, output, said = programs.start("-m", "benchmarks.gpu")
  assert (status, "sees no GPU" in output) == (2, True)
  assert said == "error: nothing to measure; --tiny tries it on a CPU\n"


@pytest.mark.parametrize(
  ("limit", "most", "size"),
  [
    (1_000 + 700 * 10, 4_096, 512),  # 700 examples.
    (1_000 + 512 * 10, 4_096, 512),
    (1_000 + 511 * 10, 4_096, 256),
    (1_000 + 20 * 10, 4_096, 16),
    (1_000, 4_096, 1),
    (10**9, 1_024, 1_024),
    (10**9, 8, 8),
  ],
)
def test_the_batch_is_the_largest_power_of_two_that_fits(limit, most, size):
  asked = []

  def peak_of(examples):
    asked.append(examples)
    return 1_000 + 10 * examples

  assert steps.largest(peak_of, limit, most) == size
  assert len(asked) == 2  # Each is a program to compile.


def test_a_model_flops_utilization_is_that_of_its_own_operations():
  chip = {"flops_per_example": {"b16": 3e9}, "peak_flops": 1e12}
  row = {"config": "b16", "seconds": 0.5, "batch_size": 100}
  table.derive("steps", row, chip)
  assert row["examples_per_second"] == 200
  assert row["flops_per_second"] == 600e9
  assert row["mfu"] == 0.6
  figures = {"fastest": 0.4, "slowest": 0.6, "peak_bytes": 2**30}
  row |= {"model": "B/16", "who": "ours", "compile_seconds": 7, **figures}
  assert table.line("steps", row).split()[-4:] == ["60.0%", "1.0", "7", "s"]
  table.derive("steps", row, chip | {"peak_flops": None})
  assert row["mfu"] is None
  assert table.line("steps", row).split()[-4:] == ["-", "1.0", "7", "s"]


def test_the_models_are_the_published_ones_and_the_plain_one_is_as_large():
  batch = {
    "image": jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.uint8),
    "text": jax.ShapeDtypeStruct((2, 64), jnp.int32),
  }
  init, _ = plain.program(plain.Plain(scan=True, remat=True), batch)
  params, _ = jax.eval_shape(init)
  sizes = [x.size for x in jax.tree.leaves(params)]
  assert sum(sizes) == 203_155_970  # test_sizes.py: ours.
  config = models.config("b16", 512, False, {"model.remat": "none"})
  assert models.title(config.model) == "B/16"
  assert (config.batch_size, config.model.remat) == (512, "none")
  assert config.model.slice_tokens is None


def test_a_process_that_takes_too_long_is_ended_and_its_rows_stay():
  code = "import time; print('{\"n\": 1}', flush=True); time.sleep(60)"
  found = list(benchmark._rows([sys.executable, "-c", code], {}, 0.5))
  assert found[0] == {"n": 1} and len(found) == 2
  assert found[1]["skipped"].startswith("ended: it was not done after")


def test_a_process_that_fails_says_why():
  code = "print('noise'); raise SystemExit('no kernel image')"
  found = list(benchmark._rows([sys.executable, "-c", code], {}, 30.0))
  assert found == [{"skipped": "failed with 1: no kernel image"}]


def test_what_a_library_refuses_is_a_row(capsys):
  with child.refusals(backend="cudnn"):
    raise NotImplementedError("Unsupported sequence length\nQ 729")
  row = json.loads(capsys.readouterr().out)
  assert row == {"backend": "cudnn", "skipped": "Unsupported sequence length"}


def test_one_name_of_the_memory_fraction_is_set_and_flags_are_added(
  monkeypatch,
):
  for name in parts.FRACTION_NAMES:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
  run = parts.Run("flags", "steps", environment=(("XLA_FLAGS", "--xla_b=2"),))
  made = benchmark._environment(run)
  assert made["XLA_FLAGS"] == "--xla_a=1 --xla_b=2"
  assert [n in made for n in parts.FRACTION_NAMES] == [True, False]
  monkeypatch.setenv(parts.FRACTION_NAMES[1], "0.5")
  made = benchmark._environment(run)
  assert [n in made for n in parts.FRACTION_NAMES] == [False, True]


def test_all_parts_take_less_than_ten_minutes_or_are_left_out():
  every = list(parts.runs(parts.PARTS))
  assert every[0].part == "chip"
  assert {run.part for run in every} == set(parts.PARTS)
  first = [run for run in every if run.part in ("chip", "steps")]
  assert every[: len(first) - 1] == first[:-1]  # What matters most.
  assert [run.part for run in parts.runs({"ring"})] == ["ring"]


@pytest.mark.parametrize("backend", ["xla", "heads_first", "cudnn"])
def test_the_step_is_lowered_for_a_gpu(backend, monkeypatch):
  if backend == "cudnn":
    if not gpus.compiler() or jax._src.lib.cuda_versions is None:
      pytest.skip("needs the extra cuda")
    for module in (attention, backends):
      monkeypatch.setattr(module, "platform_of", lambda _: "gpu")
    monkeypatch.setattr(backends, "_capability_of", lambda _: "9.0")
  config = runs.config(model__attention=backend, model__dtype="bfloat16")
  mesh = build.mesh(config, jax.devices()[:1])
  program = build.program(config, mesh)
  batch = build.abstract_batch(config, mesh)
  traced = program.step.trace(program.abstract_state, batch)
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert ("__cudnn$fmhaSoftmaxBackward" in text) == (backend == "cudnn")


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path):
  file = tmp_path / "gpu.json"
  done = subprocess.run(
    [
      *(sys.executable, "-m", "benchmarks.gpu", "--tiny"),
      *("--minutes=40", f"--json={file}"),
    ],
    cwd=runs.ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  rows = json.loads(file.read_text())["rows"]
  measured = [row for row in rows if "seconds" in row]
  assert {row["part"] for row in measured} >= set(parts.PARTS) - {"chip"}
  assert {row["who"] for row in measured} >= {"ours", "plain"}
  assert "needs a GPU, not a cpu" in done.stdout
