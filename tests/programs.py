"""The programs as users call them: most in this process, some in their own.

A start of Python costs more than what most tests ask of it: JAX alone takes
seconds to load. `call` runs the same file with the same arguments here.
"""

import contextlib
import io
import logging
import os
import re
import runpy
import signal
import subprocess
import sys
import warnings

from absl import flags
from absl import logging as absl_logging
import jax
import runs

_COMMANDS = "big_siglip.commands"
# "compiling both towers ... 5 s", "reading weights: took 2 s", "3 of 9 images".
_PROGRESS = re.compile(
  r"[^:]* \.\.\.( [\d hmins]+)?"
  r"|[^:]*: (took|stopped after) [\d hmins]+"
  r"|\d+ of \d+ [a-z]+(, .*)?"
)


def call(name, *arguments):
  """Runs a program in this process, from its first line to its last.

  What it changes for its whole process (flags, handlers of signals and logs,
  the environment, JAX's config) is put back. It finds JAX as this process has
  it, with eight devices. What is no mistake of a user keeps its trace.

  Args:
    name: the file, such as "main.py" or "tools/embed.py".
    arguments: of its command line.

  Returns:
    (exit status, standard output, standard error) as `start` does.
  """
  output, error = _text_file("strict"), _text_file("backslashreplace")
  status = 0
  with (
    _process_as_it_was(),
    contextlib.chdir(runs.ROOT),
    contextlib.redirect_stdout(output),
    contextlib.redirect_stderr(error),
    _own_command_line([name, *map(str, arguments)]),
  ):
    absl_logging.use_absl_handler()
    absl_logging.get_absl_handler().python_handler.setStream(error)
    try:
      runpy.run_path(name, run_name="__main__")
    except SystemExit as end:
      status = end.code or 0
  return status, *(f.buffer.getvalue().decode() for f in (output, error))


def train(workdir, *, config=runs.CONFIG, **changes):
  """Runs main.py on a tiny config in this process; see `runs.start`.

  Returns:
    (exit status, all that it said).
  """
  runs.scratch()
  status, output, error = call(
    "main.py",
    f"--config={config}",
    f"--workdir={workdir}",
    *runs.overrides(**changes),
  )
  return status, output + error


def said_in_one_line(name, *arguments):
  """Returns what a program that is called by mistake says, in `call`."""
  status, output, said = call(name, *arguments)
  assert (status, output) == (2, ""), said
  assert "Traceback" not in said
  lines = without_progress(said).splitlines()
  assert len(lines) == 1, said
  return lines[0] + "\n"


def without_progress(said):
  """Returns what is said beside how far it is, which slow machines hear of."""
  lines = [line for line in said.splitlines() if line]
  kept = [line for line in lines if not _PROGRESS.fullmatch(line)]
  return "".join(f"{line}\n" for line in kept)


def start(name, *arguments):
  """Runs a program in a process of its own, on as many devices as this one.

  Returns:
    (exit status, standard output, standard error).
  """
  done = subprocess.run(
    [sys.executable, name, *map(str, arguments)],
    cwd=runs.ROOT,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": str(jax.device_count())},
    capture_output=True,
    text=True,
    timeout=300,
  )
  return done.returncode, done.stdout, done.stderr


def _text_file(errors):
  """Returns what Python makes of the pipe of a program's output, in memory."""
  return io.TextIOWrapper(
    io.BytesIO(), encoding="utf-8", errors=errors, write_through=True
  )


@contextlib.contextmanager
def _own_command_line(argv):
  """Absl keeps one set of flags; those that the program defines leave it."""
  before, sys.argv = sys.argv, argv
  try:
    yield
  finally:
    own = [name for name in sys.modules if name.startswith(_COMMANDS)]
    for module in own:
      for flag in list(flags.FLAGS.flags_by_module_dict().get(module, ())):
        delattr(flags.FLAGS, flag.name)
      # The next program defines its flags anew.
      del sys.modules[module]
    flags.FLAGS.unparse_flags()
    sys.argv = before


@contextlib.contextmanager
def _process_as_it_was():
  root, handler = logging.root, absl_logging.get_absl_handler().python_handler
  handlers, level = list(root.handlers), root.level
  verbosity, stream = absl_logging.get_verbosity(), handler.stream
  numbers = (signal.SIGINT, signal.SIGTERM)
  of_signals = [signal.getsignal(number) for number in numbers]
  environment, config = dict(os.environ), dict(jax.config.values)
  path = list(sys.path)
  try:
    with warnings.catch_warnings():
      yield
  finally:
    sys.path[:] = path
    for key, value in config.items():
      if jax.config.values[key] != value:
        jax.config.update(key, value)
    os.environ.clear()
    os.environ.update(environment)
    for number, old in zip(numbers, of_signals, strict=True):
      signal.signal(number, old)
    handler.setStream(stream)
    absl_logging.set_verbosity(verbosity)
    root.handlers[:] = handlers
    root.setLevel(level)
