"""Runs of the program on a config small enough for a test."""

import atexit
import functools
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

import jax
import numpy as np

from big_siglip import build, command_line, sharding
from big_siglip.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "configs" / "digits.py")
TINY = {
  "batch_size": 16,
  "total_steps": 60,
  "model.image.image_size": 16,
  "model.image.pooling": "gap",
  "model.image.width": 32,
  "model.image.depth": 1,
  "model.image.mlp_dim": 64,
  "model.text.width": 32,
  "model.text.depth": 1,
  "model.text.mlp_dim": 64,
  "model.text.length": 16,
  "data.num_threads": 1,
  "evals.test.every": 30,
  "log_every": 3,
  "checkpoint.every": 20,
  "logging.pictures": False,  # Drawing takes longer than the evaluation.
}


@functools.cache
def scratch():
  """Returns a folder for the data sets of all runs.

  Runs find their data there: those in this process and those of `start`.
  """
  folder = pathlib.Path(tempfile.mkdtemp(prefix="big_siglip-tests-"))
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  os.environ["BIG_SIGLIP_DATA"] = str(folder / "data")
  return folder


def overrides(**changes):
  """Returns arguments for the tiny config; "__" in a name stands for "."."""
  named = {k.replace("__", "."): v for k, v in changes.items()}
  return [f"--config.{k}={v}" for k, v in {**TINY, **named}.items()]


def config(**changes):
  scratch()
  return command_line.load_config(CONFIG, overrides(**changes))


def mixed_config(folder):
  """Writes the config for a mixture of two sources; returns its path."""
  text = pathlib.Path(CONFIG).read_text()
  lines = ["c.data.mixture = ConfigDict()"]
  for name, split, weight in (("one", "train", 1.0), ("two", "test", 3.0)):
    entry = dict(name="digits", path=None, split=split, weight=weight)
    lines.append(f"c.data.mixture.{name} = ConfigDict({entry})")
  file = folder / "mixed.py"
  changed = "".join(f"  {line}\n" for line in [*lines, "return c"])
  file.write_text(text.replace("  return c\n", changed))
  return str(file)


def start(workdir, *, config=CONFIG, devices=4, env=None, flags=(), **changes):
  """Starts main.py in a process of its own; its output is one text pipe."""
  arguments = [f"--config={config}", f"--workdir={workdir}", *flags]
  scratch()
  # Compiling is what takes time here, but JAX's cache of compiled programs is
  # no way out: a program for several CPU devices that is loaded from it has
  # lost the order of its collectives, and on few cores they wait for each
  # other for ever.
  environment = {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    **(env or {}),
  }
  return subprocess.Popen(
    [sys.executable, "main.py", *arguments, *overrides(**changes)],
    cwd=ROOT,
    env={**os.environ, **environment},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def run(workdir, **options):
  """Returns (exit status, output) of main.py."""
  process = start(workdir, **options)
  output, _ = process.communicate(timeout=300)
  return process.returncode, output


def free_port():
  """Returns the number of a port that nobody listens at."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


def start_several(workdir, *, count, devices, **changes):
  """Starts main.py as the `count` processes of one run."""
  names = {
    "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
    "JAX_NUM_PROCESSES": str(count),
  }
  return [
    start(
      workdir,
      devices=devices,
      env={**names, "JAX_PROCESS_ID": str(index)},
      distributed=True,
      **changes,
    )
    for index in range(count)
  ]


def wait_for(process, start):
  """Reads on until a line starts so; returns what was read."""
  lines = []
  for line in process.stdout:
    lines.append(line)
    if line.startswith(start):
      break
  return "".join(lines)


def finish_several(processes, *, after=None, told=0):
  """Waits for the processes of one run, each of which must succeed.

  Args:
    processes: of `start_several`.
    after: the step after which one of them is told to stop; None: they end.
    told: which one.

  Returns:
    What each of them said.
  """
  said = ""
  if after is not None:
    said = wait_for(processes[0], f"step {after}/")
    processes[told].send_signal(signal.SIGTERM)
  outputs = [process.communicate(timeout=500)[0] for process in processes]
  outputs[0] = said + outputs[0]
  assert not any(process.returncode for process in processes), outputs
  return outputs


def newest(workdir):
  """Returns the step of the newest checkpoint."""
  return max(int(p.name) for p in workdir.glob("checkpoints/[0-9]*"))


def final_state(workdir, **changes):
  """Returns ({path: array} of the newest checkpoint, its data position)."""
  tiny = config(**changes)
  program = build.program(tiny, build.mesh(tiny))
  checkpoints = Checkpoints(workdir / "checkpoints", keep=2)
  state, data = checkpoints.restore(program.abstract_state)
  checkpoints.close()
  return flatten(state), data


def flatten(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    sharding.path_string(path): np.asarray(jax.device_get(leaf))
    for path, leaf in leaves
  }


def assert_same(state, expected):
  """Bit for bit."""
  assert state.keys() == expected.keys()
  for path, array in state.items():
    np.testing.assert_array_equal(array, expected[path], err_msg=path)
