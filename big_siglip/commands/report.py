"""Writes one HTML page about a run, or about several side by side.

big-siglip report runs/digits
big-siglip report runs/a runs/b --output=compared.html --price=1.2

The page holds configs, curves, evaluations, predictions, similarities and
retrieval on held-out examples, what a decoder writes and patches know of them,
skipped data, hardware, time and cost. It is one file that opens offline, in any
browser. A run may still be in progress. The last numbers of a single run are
printed too. --map_layer=-3 asks earlier patches where texts are: docs/dense.md.
"""

from absl import flags, logging

from big_siglip import extras, progress
from big_siglip.errors import exit_on_error, UserError

_OUTPUT = flags.DEFINE_string("output", "report.html", "The page to write.")
_EXAMPLES = flags.DEFINE_integer(
  "examples",
  300,
  "Examples of each data set to show the models; 0 for no pictures.",
  lower_bound=0,
)
_PRICE = flags.DEFINE_float(
  "price", None, "Price of an hour of one device.", 0.0
)
_KIND = flags.DEFINE_enum(
  "map_kind",
  None,
  ["text", "value"],
  "Of patches that texts are compared with; text, or what a tower has.",
)
_LAYER = flags.DEFINE_integer(
  "map_layer", -1, "Of the same: -1 the last block, -2 the one before."
)


def main(argv: list[str]) -> None:
  """Writes the page and prints where it lies."""
  logging.set_verbosity(logging.ERROR)
  with exit_on_error():
    if not argv[1:]:
      raise UserError("name at least one run's folder")
    with progress.loading():
      from big_siglip import platforms
      from big_siglip.metrics import last_metrics

      with extras.needed_by("big-siglip report"):
        from big_siglip.report import maps, page
      platforms.prepare()
    file = page.write_report(
      argv[1:],
      _OUTPUT.value,
      examples=_EXAMPLES.value,
      price=_PRICE.value,
      choice=maps.Choice(_KIND.value, _LAYER.value),
    )
  if len(argv) == 2:
    for name, value in last_metrics(argv[1]).items():
      print(f"  {name:42} {value:.4g}")
  print(f"report       {file}")
