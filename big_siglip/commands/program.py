"""Runs a command as the program that was started."""

import sys
import types

from absl import app, flags

from big_siglip import progress
from big_siglip.command_line import parse_arguments
from big_siglip.errors import exit_on_error

_HELP = ("--help", "-help", "-h")


def run(command: types.ModuleType) -> None:
  """Parses the command line and calls `main`; ends the process.

  Args:
    command: a module of `big_siglip.commands`. Its docstring and flags are what
      --help shows, and its `parse`, if it has one, takes the arguments.
  """
  own = sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
  if any(argument in _HELP for argument in own):
    with exit_on_error():
      print(help_text(command))
    sys.exit(0)
  with progress.speaking():
    app.run(
      command.main, flags_parser=getattr(command, "parse", parse_arguments)
    )


def help_text(command: types.ModuleType) -> str:
  """Returns what --help shows of a module of `big_siglip.commands`."""
  listed = flags.FLAGS.module_help(command.__name__).partition(":\n")[2]
  return f"{(command.__doc__ or '').strip()}\n\nflags:\n{listed.rstrip()}"
