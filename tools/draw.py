"""Draws a run: loss and evaluation curves, and predictions on held-out images.

python tools/draw.py --workdir=runs/digits

Writes WORKDIR/summary.png and prints the run's last numbers. Predictions are
those of the first classification evaluator in the run's config.
"""

from absl import app, flags, logging

from big_siglip.command_line import parse_arguments
from big_siglip.errors import exit_on_error, UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")


def main(argv: list[str]) -> None:
  """Draws the picture and prints the table."""
  logging.set_verbosity(logging.WARNING)
  with exit_on_error():
    if argv[1:]:
      raise UserError(f"{argv[1]!r}: belongs to no flag")
    if not _WORKDIR.value:
      raise UserError("--workdir=RUN must be given")
    from big_siglip import picture, platforms
    from big_siglip.trained import saved

    platforms.prepare()
    run, checkpoint = saved.find(_WORKDIR.value)
    config = saved.load_config(run)
    file = picture.draw_run(run, checkpoint, config)
  for name, value in picture.last_metrics(run).items():
    print(f"  {name:42} {value:.4g}")
  print(f"picture      {file}\ncheckpoints  {checkpoint.parent}")
  print(f"metrics      {run / 'metrics.jsonl'}")


if __name__ == "__main__":
  app.run(main, flags_parser=parse_arguments)
