"""Exceptions whose message is meant for the user, without a trace."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import multiprocessing
import os
import re
import select
import sys
from typing import NoReturn, TextIO


class UserError(ValueError):
  """A mistake of the user: its message names field, value and what is allowed.

  Programs print the message alone and exit with status 2; any other exception
  is a fault of the program and keeps its trace.
  """


class BadExample(ValueError):
  """One example cannot be used: another one takes its place.

  Attributes:
    kind: what is wrong, one of `data.faults.KINDS`.
    name: what the example is called, where the message does not say it.
  """

  def __init__(self, reason: str, kind: str = "record", name: str = ""):
    super().__init__(reason)
    self.kind = kind
    self.name = name


class RunStopped(RuntimeError):
  """A run ended early for a reason that its message gives in one line."""


class Stalled(RunStopped):
  """Data do not come any more: threads are stuck that nobody can join."""


def raise_problems(problems: Sequence[str]) -> None:
  """Raises one `UserError` that lists every problem, if there is any."""
  if len(problems) == 1:
    raise UserError(problems[0])
  if problems:
    count = len(problems)
    raise UserError("\n  ".join([f"{count} mistakes:", *problems]))


@contextlib.contextmanager
def naming(fields: Mapping[str, str]) -> Iterator[None]:
  """Calls the fields of a `UserError` by the names that the user gave them.

  Args:
    fields: such as "config.data.path" -> "--path".
  """
  try:
    yield
  except UserError as error:
    message = str(error)
    for field, name in fields.items():
      # Not where it is named as the user does already.
      message = re.sub(rf"(?<!-){re.escape(field)}=", f"{name}=", message)
    raise UserError(message) from error


@contextlib.contextmanager
def naming_evaluation(name: str) -> Iterator[None]:
  """Says of a `UserError` which evaluation it is of.

  "config.evals: data=" becomes "config.evals.NAME.data="; a message that does
  not speak of the evaluation at all gets "config.evals.NAME: " in front.

  Args:
    name: the section's in `config.evals`.
  """
  section = f"config.evals.{name}"
  try:
    yield
  except UserError as error:
    message = re.sub(
      r"config\.evals: (?=\w+=)", lambda _: f"{section}.", str(error)
    )
    message = message.replace("config.evals: ", f"{section}: ")
    if section not in message:
      message = f"{section}: {message}"
    raise UserError(message) from error


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
  """Ends the program with a message alone: a mistake with 2, a stop with 1."""
  try:
    yield
    if sys.stdout:
      sys.stdout.flush()
  except BrokenPipeError:
    if not _output_is_gone():  # A pipe to a worker process, say.
      raise
    drop_output()  # Whoever read it has seen enough.
    sys.exit(0)
  except (UserError, RunStopped) as error:
    with contextlib.suppress(OSError):  # Nobody may read it any more.
      print(f"error: {error}", file=sys.stderr)
    if isinstance(error, Stalled):
      leave(1)
    sys.exit(2 if isinstance(error, UserError) else 1)
  finally:
    _let_messages_go()


def leave(status: int) -> NoReturn:
  """Ends this process at once, where an orderly end would wait for ever."""
  for worker in multiprocessing.active_children():
    worker.kill()
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError):  # Nobody may read it any more.
      if stream:
        stream.flush()
  os._exit(status)


def drop_output(stream: TextIO | None = None) -> None:
  """Lets whatever is printed from now on go nowhere, unflushed lines too.

  Args:
    stream: to which it is printed; None: standard output.
  """
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, (stream or sys.stdout).fileno())
  os.close(nowhere)


def _let_messages_go() -> None:
  """Drops what nobody reads of standard error, or Python would end with 120."""
  try:
    if sys.stderr and not sys.stderr.closed:
      sys.stderr.flush()
  except OSError:
    drop_output(sys.stderr)


def _output_is_gone() -> bool:
  """Returns whether nobody can read what is printed any more."""
  try:
    poll = select.poll()
    poll.register(sys.stdout, 0)  # Errors alone, which are always told.
  except (TypeError, ValueError, OSError):  # It is no file.
    return False
  return bool(poll.poll(0))
