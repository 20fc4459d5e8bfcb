"""What the studies' command lines share."""

import argparse
from collections.abc import Callable, Mapping, Sequence
import pathlib

import jax

from big_siglip import platforms
from big_siglip.errors import UserError
from studies.records import Records
from studies.report import Report

# As many of both: one program trains all rates, then all seeds. A training on
# scenes takes ten times as long as one on digits.
RATES = {
  "digits": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
  "scenes": (1e-3, 3e-3, 1e-2, 3e-2),
}
SEEDS = {"digits": (0, 1, 2, 3, 4), "scenes": (0, 1, 2, 3)}
QUICK = {"rates": {"digits": (3e-3, 1e-2)}, "seeds": {"digits": (0, 1)}}


def tried(settings: Mapping) -> str:
  """Returns the sentence about learning rates and seeds."""
  said = []
  for data in settings["examples"]:
    rates = ", ".join(f"{rate:g}" for rate in settings["rates"][data])
    seeds = len(settings["seeds"][data])
    said.append(f"{data}: rates {rates} and {seeds} seeds")
  edge = "A rate with a star is the lowest or highest tried."
  return f"{'; '.join(said)}. {edge}"


def chosen(records: Sequence[dict], settings: Mapping) -> str:
  """Returns the learning rate, with a star if none lower or higher is tried."""
  rates, rate = (
    settings["rates"][records[0]["data"]],
    records[0]["learning_rate"],
  )
  return f"{rate:g}" + ("*" if rate in (min(rates), max(rates)) else "")


def main(
  name: str,
  description: str,
  study: Callable[[Records, Mapping], Report],
  settings: Mapping,
  quick: Mapping,
  arguments: Sequence[str] | None = None,
) -> None:
  """Runs a study, prints its table, and writes NAME.md and NAME.png.

  Args:
    name: of the files.
    description: of the help.
    study: (records, settings) -> what to say; runs lie in `records.folder`.
    settings: of the study.
    quick: what differs with --quick, which shows in seconds that all works.
    arguments: None: those of the process.
  """
  parser = argparse.ArgumentParser(description=description.splitlines()[0])
  parser.add_argument(
    *("--output",),
    **dict(required=True, help="a folder; the same again goes on from there"),
  )
  parser.add_argument("--quick", action="store_true", help="says nothing true")
  given = parser.parse_args(arguments)
  platforms.prepare()
  folder = pathlib.Path(given.output)
  # A study that goes on, or comes after another, compiles nothing anew.
  jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
  try:
    records = Records(folder)
  except UserError as error:
    parser.error(str(error))
  report = study(records, {**settings, **(quick if given.quick else {})})
  report.draw(folder / f"{name}.png")
  text = report.markdown(f"{name}.png")
  (folder / f"{name}.md").write_text(text)
  print("\n" + text)
