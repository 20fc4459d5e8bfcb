"""Compares two evaluations of the same images: what is better, what changed.

big-siglip evaluate --checkpoint=runs/a --output=results/a
big-siglip evaluate --checkpoint=runs/b --output=results/b
big-siglip compare results/a results/b --output=changed.csv

Each of the two is a folder that evaluate wrote, its results.json, or a file of
rows (evaluate --rows=FILE). Images, or queries, are paired by their key; the
metrics are those of what both have. Prints for each metric both values, the
difference and its 95 % interval (a paired bootstrap over images), how many went
from wrong to right and back, and the first of them. --output writes all that
changed as a table. --json prints one JSON object instead.
"""

import json

from absl import flags

from big_siglip import progress
from big_siglip.commands import tables
from big_siglip.errors import exit_on_error, UserError

_OUTPUT = flags.DEFINE_string(
  "output", None, "A file for all that changed: .csv, .parquet or .jsonl."
)
_LIMIT = flags.DEFINE_integer(
  "limit", 20, "How many of those that changed to print.", lower_bound=0
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


def main(argv: list[str]) -> None:
  """Prints and writes what two evaluations differ in."""
  with exit_on_error():
    if len(argv) != 3:
      raise UserError(
        f"{len(argv) - 1} results: name two folders that big-siglip "
        "evaluate --output wrote, the earlier one first"
      )
    if _OUTPUT.value is not None:
      tables.check(_OUTPUT.value, "--output")
    with progress.loading():
      from big_siglip.evaluation import reading
      from big_siglip.evaluation.compare import compare

    with progress.waiting("comparing"):
      first, second = (reading.read(path) for path in argv[1:])
      found = compare(first, second)
    files = _write(found)
    if _JSON.value:
      print(json.dumps(_as_json(first, second, found)))
      return
    for letter, results in (("A", first), ("B", second)):
      print(f"{letter}  {results.place}  {results.checkpoint}".rstrip())
    for one in found:
      print("\n".join(_lines(one)))
    for file in files:
      print(f"  {file}")


def _write(found) -> list:
  """Writes what changed, a file for each evaluation."""
  if _OUTPUT.value is None:
    return []
  from etils import epath

  from big_siglip.evaluation import rows

  file = epath.Path(_OUTPUT.value).expanduser()
  files = []
  for one in found:
    ending = f"-{one.name}" if len(found) > 1 else ""
    files.append(file.with_name(f"{file.stem}{ending}{file.suffix}"))
    rows.write(files[-1], one.changed)
  return files


def _lines(one) -> list[str]:
  """Returns a comparison as lines for a terminal."""
  lines = [
    "",
    f"  {one.name}: {one.images:,} images of both, 95% intervals",
    f"    {'':32} {'A':>8} {'B':>8} {'B - A':>9}",
  ]
  for metric, before, after, low, high in one.differences:
    change = f"{after - before:+9.4f}  [{low:+.4f}, {high:+.4f}]"
    lines.append(f"    {metric:32} {before:8.4f} {after:8.4f} {change}")
  for way, better, worse, p in one.changes:
    said = "" if p is None else f" (McNemar p = {p:.3g})"
    way = f"{way}: " if way else ""
    lines.append(
      f"    {way}{better:,} from wrong to right, {worse:,} from right to wrong"
      f"{said}"
    )
  lines += [f"    note: {note}" for note in one.notes]
  return [*lines, *_changed(one.changed)]


def _changed(table) -> list[str]:
  """Returns the first rows of what changed, in columns."""
  named = {
    "key": "", "query": "", "label": "label",
    "predicted_before": "A", "predicted_after": "B",
    "first_before": "A", "first_after": "B", "change": "",
  }  # fmt: skip
  count = len(table["key"])
  shown = [name for name in named if name in table]
  if "query" in table:
    shown.remove("key")
  cells = [[named[name] for name in shown]]
  for row in range(min(count, _LIMIT.value)):
    cells.append([_short(table[name][row]) for name in shown])
  if len(cells) == 1:
    return []
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    "    " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in cells
  ]
  if count > _LIMIT.value:
    more = f"    ... and {count - _LIMIT.value:,} more"
    lines.append(more + (": --output=FILE.csv" if not _OUTPUT.value else ""))
  return lines


def _short(value: str | None) -> str:
  text = " ".join(str("-" if value is None else value).split())
  return text if len(text) <= 40 else f"{text[:37]}..."


def _as_json(first, second, found) -> dict:
  return {
    "a": {"checkpoint": first.checkpoint, "step": first.step},
    "b": {"checkpoint": second.checkpoint, "step": second.step},
    "evaluations": {
      one.name: {
        "images": one.images,
        "metrics": {
          metric: {
            "a": before,
            "b": after,
            "difference": after - before,
            "low": low,
            "high": high,
          }
          for metric, before, after, low, high in one.differences
        },
        "changes": [change._asdict() for change in one.changes],
        "changed": _records(one.changed),
        "notes": list(one.notes),
      }
      for one in found
    },
  }


def _records(table) -> list[dict]:
  rows = zip(*table.values(), strict=True)
  return [dict(zip(table, row, strict=True)) for row in rows]
