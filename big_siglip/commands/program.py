"""Runs a command as the program that was started."""

import sys
import types

from absl import app, flags

from big_siglip import progress
from big_siglip.command_line import parse_arguments


def run(command: types.ModuleType) -> None:
  """Parses the command line and calls `main`; ends the process.

  Args:
    command: a module of `big_siglip.commands`. Its docstring and flags are what
      --help shows, and its `parse`, if it has one, takes the arguments.
  """
  sys.modules["__main__"].__doc__ = command.__doc__
  for flag in flags.FLAGS.get_key_flags_for_module(command.__name__):
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  with progress.speaking():
    app.run(
      command.main, flags_parser=getattr(command, "parse", parse_arguments)
    )
