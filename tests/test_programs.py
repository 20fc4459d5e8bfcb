"""Mistakes in arguments are told before anything is loaded that takes long."""

import json
import subprocess
import sys

import pytest
import runs

CONFIG = "--config=configs/digits.py"
HEAVY = "jax flax orbax grain tensorflow_datasets matplotlib numpy torch etils"
CASES = [
  (["main.py", CONFIG, "--config.batch_sise=3"], "did you mean 'batch_size'?"),
  (["main.py", CONFIG, "--config.optimizer.b1=2"], "must lie in [0, 1)"),
  (["main.py", CONFIG, "--config.evals.test.kind=no"], "must be one of"),
  (["main.py", CONFIG, "--config.seed=x"], "config.seed=x: wrong type"),
  (["main.py", CONFIG, "--workdi=x"], "workdi"),
  (["main.py", CONFIG], "--workdir=DIR must be given"),
  (
    ["main.py"],
    "--config=NAME or --config=FILE.py must be given (by name: b16,",
  ),
  (["tools/calibrate.py", "--checkpoint=x"], "--images=FOLDER, or another"),
  (["tools/caption.py"], "--checkpoint=RUN must be given"),
  (
    ["tools/caption.py", "--checkpoint=x", "--box=0,0,2,1", "a.png"],
    "--box=0,0,2,1: must be y1,x1,y2,x2",
  ),
  (["tools/classify.py", "--checkpoint=x", "--top=0"], "--labels=A,B"),
  (
    ["tools/classify.py", "--checkpoint=x", "--labels=a", "--threshold=30"],
    "--threshold=30.0: must lie in [0, 1]",
  ),
  (["tools/compare.py", "x"], "1 results: name two folders"),
  (["tools/compare.py", "x", "y", "--output=z.txt"], "must end in one of .csv"),
  (
    [
      "tools/embed.py",
      "--checkpoint=x",
      "--output=y",
      "--texts=z",
      "--dtype=q",
    ],
    "--dtype=q: must be float32 or float16",
  ),
  (["tools/evaluate.py"], "--checkpoint=RUN or --watch=RUN must be given"),
  (["tools/evaluate.py", "--checkpoint=x", "--rows"], "--rows: name a file"),
  (
    ["tools/evaluate.py", "--checkpoint=x", "--rows=a.txt"],
    "--rows=a.txt: must end in one of .csv",
  ),
  (
    ["tools/evaluate.py", "--watch=x", "--rows=a.csv"],
    "--rows: goes with --checkpoint",
  ),
  (["tools/evaluate.py", "--evals=no.py"], "--evals=no.py: no such file"),
  (["tools/export_weights.py", "--checkpoint=x"], "--output must be given"),
  (
    ["tools/export_weights.py", "--checkpoint=x", "--output=tests"],
    "--output=tests: exists already",
  ),
  (
    ["tools/export_weights.py", "--checkpoint=x", "--output=m.npz"],
    "--output=m.npz: must be a folder",
  ),
  (
    [
      *("tools/export_weights.py", "--checkpoint=x", "--output=m.pt"),
      "--format=open_clip",
    ],
    "--output=m.pt: must end in .safetensors or be a folder",
  ),
  (["tools/import_weights.py"], "--weights must be given"),
  (["tools/inspect_data.py", CONFIG, "--count=0"], "--count"),
  (["tools/dense.py"], "must begin with one of pca | segment | match"),
  (["tools/dense.py", "pca", "--checkpoint=x"], "name at least one image"),
  (
    ["tools/dense.py", "match", "--checkpoint=x", "a.png"],
    "match: must have 2 images, not 1",
  ),
  (
    ["tools/dense.py", "segment", "--checkpoint=x", "a.png"],
    "--labels=A,B: goes with segment",
  ),
  (
    ["tools/dense.py", "pca", "--checkpoint=x", "--output=a.txt", "a.png"],
    "--output=a.txt: must be .png, .webp or .jpg",
  ),
  (["tools/neighbours.py"], "either --embeddings=DIR or --images=FOLDER"),
  (
    ["tools/neighbours.py", "--embeddings=x", "--threshold=1.5"],
    "--threshold=1.5: must be above 0 and at most 1",
  ),
  (["tools/plan.py", CONFIG], "--topology=KIND:SHAPE must be given"),
  (
    ["tools/plan.py", CONFIG, "--topology=v5e:2x2", "--batch_sizes=a"],
    "must be whole numbers",
  ),
  (
    ["tools/plan.py", CONFIG, "--topology=v5e:2x2", "--remats=some"],
    "--remats=some: must be one of none, full",
  ),
  (["tools/probe.py", "--checkpoint=x"], "--output=OUTPUT must be given"),
  (["tools/prepare.py", "no"], "must be one of wit, wit_base"),
  (
    ["tools/prepare.py", "boxes", "a", "--output=b", "--table=c"],
    "--box_format=yxyx|xyxy|xywh must be given",
  ),
  (["tools/report.py"], "name at least one run"),
  (["tools/report.py", "run", "--price=-1"], "--price"),
  (["tools/rewrite_tfrecord.py"], "--input=FOLDER must be given"),
  (["tools/search.py", "--embeddings=x"], "either --query=TEXT"),
  (["tools/serve.py"], "--checkpoint=MODEL must be given"),
  (["tools/train_tokenizer.py", "--output=x.model", "--clean=q"], "--clean=q"),
  (
    ["tools/train_tokenizer.py", "--output=x.model", "--model_type=q"],
    "--model_type=q: must be one of unigram, bpe",
  ),
]
PROGRAMS = sorted({arguments[0] for arguments, _ in CASES})
CASES += [([program, "--help"], "\n\nflags:\n  --") for program in PROGRAMS]

# Each case in a child of one bare interpreter, which has no threads yet: flags
# are global. Prints [status, what it said, the heavy modules it loaded].
_DRIVER = """
import contextlib, io, json, os, runpy, sys
for arguments in json.loads(sys.argv[1]):
  if os.fork():
    os.wait()
    continue
  sys.argv, said = arguments, io.TextIOWrapper(io.BytesIO())
  with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    try:
      runpy.run_path(arguments[0], run_name="__main__")
      status = 0
    except BaseException as error:
      status = getattr(error, "code", repr(error))
  heavy = [name for name in HEAVY if name in sys.modules]
  said.seek(0)
  print(json.dumps([status, said.read(), heavy]), flush=True)
  os._exit(0)
"""


@pytest.fixture(scope="module")
def told():
  driver = _DRIVER.replace("HEAVY", repr(HEAVY.split()))
  given = json.dumps([arguments for arguments, _ in CASES])
  done = subprocess.run(
    [sys.executable, "-c", driver, given],
    cwd=runs.ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_program_is_asked():
  tools = {f"tools/{file.name}" for file in (runs.ROOT / "tools").glob("*.py")}
  assert {"main.py", *tools} == set(PROGRAMS)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_mistake_is_told_before_anything_heavy_is_loaded(told, number):
  assert len(told) == len(CASES)
  arguments, expected = CASES[number]
  status, said, heavy = told[number]
  assert not heavy, f"{arguments} loads {heavy}"
  assert expected in said
  assert status == (0 if "--help" in arguments else 2)
  if "--help" not in arguments:
    assert len(said.strip().splitlines()) == 1
