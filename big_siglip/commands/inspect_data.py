"""Shows what a config's model will see of its data, and how fast it comes.

big-siglip inspect --config=configs/folder.py \
  --config.data.path=PHOTOS --output=data.png

Loads the first batches of the training order, draws a page of the images, after
augmentation, with their decoded tokens, and prints images a second with the
config's workers and threads, where the time of one thread goes, the epochs of
the whole run, and what was skipped; first of all how the data were understood:
how many there are, of which fields, and the first three. With boxes among
config.data.fields it draws these too, and counts what is wrong with them.
--json prints one JSON object instead.
"""

import dataclasses
import json

from absl import flags, logging
from ml_collections import ConfigDict

from big_siglip import extras, progress
from big_siglip.command_line import parse_flags
from big_siglip.errors import exit_on_error, UserError

_OUTPUT = flags.DEFINE_string("output", "data.png", "The page, a PNG file.")
_COUNT = flags.DEFINE_integer("count", 256, "Examples to measure, at least.", 1)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


def parse(argv: list[str]) -> ConfigDict:
  """Returns the config that the flags ask for."""
  with exit_on_error():
    return parse_flags(argv)


def main(config: ConfigDict) -> None:
  """Draws the page and prints the numbers."""
  logging.set_verbosity(logging.ERROR)
  with exit_on_error():
    with progress.loading():
      from big_siglip import build, platforms, training_data
      from big_siglip.data.first_look import first_look
      from big_siglip.trained import from_init

      with extras.needed_by("big-siglip inspect"):
        from big_siglip.report import inspection
      platforms.prepare()
    with progress.waiting("opening the data"):
      config, taken = from_init.fill(config)
      source = training_data.train_source(config)
    with progress.waiting("reading batches"):
      found = inspection.inspect(
        source, build.views(config), config, _COUNT.value
      )
    try:
      with progress.waiting("drawing the page", after=4):
        inspection.draw(found, _OUTPUT.value)
    except OSError as error:
      raise UserError(
        f"--output={_OUTPUT.value}: not writable ({error.strerror})"
      ) from error
  if _JSON.value:
    look = first_look(source)
    print(json.dumps({"data": look, **as_json(found, len(source))}))
  else:
    print("\n".join([*taken, *first_look(source)]))
    print_table(found, len(source), config)


def as_json(found, length: int) -> dict[str, object]:
  """Returns what is printed for programs."""
  return {
    "examples": length,
    "images_per_second": found.images_per_second,
    "milliseconds": found.milliseconds,
    "epochs": found.epochs,
    "skipped": found.skipped,
    "faults": [dataclasses.asdict(fault) for fault in found.faults],
    **({"boxes": found.boxes.as_json()} if found.boxes else {}),
    "page": _OUTPUT.value,
  }


def print_table(found, length: int, config: ConfigDict) -> None:
  """Prints the same for people."""
  data = config.data
  how = f"{data.num_workers} workers, {data.num_threads} threads"
  print(f"examples       {length}")
  print(f"arriving       {found.images_per_second:.0f} images/s ({how})")
  total = sum(found.milliseconds.values())
  print(f"one thread     {total:.2f} ms an example, of which")
  for stage, value in found.milliseconds.items():
    print(f"  {stage:12} {value:6.2f} ms  {value / max(total, 1e-9):4.0%}")
  for name, value in found.epochs.items():
    print(f"{name:14} {value:.2f} in {config.total_steps} steps")
  shards = sum(fault.index < 0 for fault in found.faults)
  counts = {
    **found.skipped,
    **({"shards and tables": shards} if shards else {}),
  }
  skipped = ", ".join(f"{kind} {n}" for kind, n in counts.items())
  print(f"skipped        {skipped or 'none'}")
  for fault in found.faults[:10]:
    print(f"  {fault.name}: {fault.reason} ({fault.kind})")
  if found.boxes:
    print("\n".join(found.boxes.lines()))
  print(f"page           {_OUTPUT.value}")
