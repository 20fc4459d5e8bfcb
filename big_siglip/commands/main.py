"""The command `big-siglip`: all programs behind one name.

main.py and tools/ of the repository are the same programs, a file each.
"""

import difflib
import sys
import textwrap
import types

from big_siglip import __version__, durations
from big_siglip.errors import exit_on_error, UserError

# What `big-siglip --help` says: the first line of each module.
LINES = {
  "train": "Trains a SigLIP, and resumes where it stopped.",
  "evaluate": (
    "Evaluates a checkpoint as its run did, or otherwise; or a run as it "
    "trains."
  ),
  "compare": (
    "Compares two evaluations of the same images: what is better, what changed."
  ),
  "report": "Writes one HTML page about a run, or about several side by side.",
  "classify": (
    "Scores images against labels of your choice, or by a classifier of yours."
  ),
  "caption": (
    "Writes captions of images, boxes of phrases, and phrases of boxes."
  ),
  "calibrate": (
    "Fits scale and bias of the logits to your images, and keeps them."
  ),
  "probe": "Teaches a classifier on a model's embeddings, and keeps it.",
  "embed": "Embeds images or texts, millions of them, into Parquet files.",
  "search": (
    "Finds the images or texts nearest to a query, among those of embed."
  ),
  "neighbours": (
    "Finds near-duplicates in a library of images: pairs and groups of them."
  ),
  "dense": "Draws what patches know: components, labels, matches, attention.",
  "serve": (
    "Serves a page for a trained model: images against labels, and search."
  ),
  "import": "Makes a model folder of published SigLIP or SigLIP 2 weights.",
  "export": "Writes a trained model in another project's format.",
  "inspect": (
    "Shows what a config's model will see of its data, and how fast it comes."
  ),
  "plan": "Says what a run will need before anyone rents the chips.",
  "prepare": (
    "Prepares WIT, tar shards or Parquet as a TFDS data set, through Apache "
    "Beam."
  ),
  "tokenizer": (
    "Trains a SentencePiece tokenizer on the captions of any data set."
  ),
  "rewrite_tfrecord": (
    "Rewrites a prepared TFDS data set from TFRecord to ArrayRecord."
  ),
}


def main() -> None:
  """Runs the command that the first argument names; ends the process."""
  arguments = sys.argv[1:]
  match arguments:
    case []:
      print(_help(), file=sys.stderr)
      sys.exit(2)
    case ["--help" | "-h" | "help"]:
      with exit_on_error():
        print(_help())
    case ["--version"]:
      print(f"big-siglip {__version__}")
    case ["help", name, *_]:
      _run(name, ["--help"])
    case [name, *others]:
      _run(name, others)


def find(name: str) -> types.ModuleType:  # noqa: C901
  """Returns the module of a command.

  One alone is loaded: each defines its flags in the same table.

  Raises:
    UserError: there is no such command.
  """
  match name:
    case "train":
      from big_siglip.commands import train as command
    case "evaluate":
      from big_siglip.commands import evaluate as command
    case "compare":
      from big_siglip.commands import compare as command
    case "report":
      from big_siglip.commands import report as command
    case "classify":
      from big_siglip.commands import classify as command
    case "caption":
      from big_siglip.commands import caption as command
    case "calibrate":
      from big_siglip.commands import calibrate as command
    case "probe":
      from big_siglip.commands import probe as command
    case "embed":
      from big_siglip.commands import embed as command
    case "search":
      from big_siglip.commands import search as command
    case "neighbours":
      from big_siglip.commands import neighbours as command
    case "dense":
      from big_siglip.commands import dense as command
    case "serve":
      from big_siglip.commands import serve as command
    case "import":
      from big_siglip.commands import import_weights as command
    case "export":
      from big_siglip.commands import export_weights as command
    case "inspect":
      from big_siglip.commands import inspect_data as command
    case "plan":
      from big_siglip.commands import plan as command
    case "prepare":
      from big_siglip.commands import prepare as command
    case "tokenizer":
      from big_siglip.commands import train_tokenizer as command
    case "rewrite_tfrecord":
      from big_siglip.commands import rewrite_tfrecord as command
    case _:
      raise UserError(_unknown(name))
  return command


def _run(name: str, arguments: list[str]) -> None:
  with exit_on_error():
    command = find(name)
  from big_siglip.commands import program  # Imported late: it loads absl.

  sys.argv = [f"big-siglip {name}", *arguments]
  program.run(command)


def _help() -> str:
  width = max(map(len, LINES))
  lines = [
    textwrap.fill(
      line,
      80,
      initial_indent=f"  {name:{width}}  ",
      subsequent_indent=" " * (width + 4),
    )
    for name, line in LINES.items()
  ]
  kept = durations.cache_folder()
  return "\n".join(
    [
      "big-siglip trains, fine-tunes, evaluates and exports SigLIP models.",
      "",
      "usage: big-siglip COMMAND [--FLAG=VALUE ...]",
      "",
      *lines,
      "",
      "big-siglip COMMAND --help shows examples and flags of one.",
      f"Compiled programs are kept in {kept or 'no folder'}.",
    ]
  )


def _unknown(name: str) -> str:
  if name.startswith("-"):
    return f"{name}: name a command first, as in big-siglip train {name}"
  close = difflib.get_close_matches(name.lower(), LINES, n=1)
  hint = f"; did you mean {close[0]!r}?" if close else ""
  return f"no command {name!r}{hint} (big-siglip --help lists them)"
