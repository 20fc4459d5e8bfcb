"""Puts a report together: page.html, with page.css and page.js in it.

What comes from runs and data sets (captions, paths, reasons) is other people's
text: the templates escape all of it, and the page's policy lets no script run
but its own.
"""

import base64
from collections.abc import Iterator, Sequence
import contextlib
import datetime
import hashlib

from etils import epath
from markupsafe import Markup

from big_siglip.errors import UserError
from big_siglip.report import (
  answers,
  curves,
  maps,
  resources,
  samples,
  tables,
  templates,
  writing,
)
from big_siglip.report.opening import read_runs
from big_siglip.report.runs import Run
from big_siglip.run import workdir

MAX_RUNS = 8  # As many colours can be told apart.


def write_report(
  paths: Sequence[str],
  output: str,
  *,
  examples: int = 300,
  price: float | None = None,
  choice: maps.Choice = maps.USUAL,
) -> epath.Path:
  """Writes the page and returns its path.

  Args:
    paths: the runs' folders.
    output: the file to write.
    examples: of each data set, to show the models; 0 for no pictures.
    price: of an hour of one device; None leaves the cost out.
    choice: which patches are compared with texts.

  Raises:
    UserError: no run, too many, a folder without one, a page that cannot be
      written.
  """
  if not 1 <= len(paths) <= MAX_RUNS:
    raise UserError(
      f"{len(paths)} runs: name the folders of 1 to {MAX_RUNS} of them"
    )
  if examples < 0:
    raise UserError(f"--examples={examples}: must be at least 0")
  if price is not None and price < 0:
    raise UserError(f"--price={price}: must be at least 0")
  file = epath.Path(output).expanduser()
  runs = read_runs(paths)
  with _told(file):  # Now, not after minutes of work.
    if file.is_dir():
      raise IsADirectoryError("is a folder")
    probe = file.with_name(f".{file.name}.probe")
    probe.write_text("")
    probe.unlink()
  pictures = examples > 0
  page = render(
    runs,
    samples.groups(runs, examples, choice),
    price,
    answers.wrong(runs, pictures),
    answers.compared(runs, pictures),
  )
  with _told(file):
    workdir.write_whole(file, page)
  return file


def render(
  runs: Sequence[Run],
  groups: Sequence[samples.Group],
  price: float | None,
  wrong: Sequence[answers.Wrong] = (),
  compared: Sequence[answers.Compared] = (),
) -> str:
  """Returns the page as text."""
  environment = templates.environment()
  environment.filters |= {"probability": probability, "heat": heat_step}
  script = templates.FOLDER.joinpath("page.js").read_text()
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  names = [run.name for run in runs]
  training = curves.training_charts(runs)
  now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
  return environment.get_template("page.html").render(
    runs=runs,
    names=names,
    title=f"{', '.join(names)}: report",
    written=now,
    # Both files are our own.
    style=Markup(templates.FOLDER.joinpath("page.css").read_text()),
    script=Markup(script),
    script_hash=digest,
    headlines=[tables.headline(run) for run in runs],
    overview=tables.overview(runs),
    evaluations=tables.evaluations(runs),
    evaluated_images=tables.evaluated_images(runs),
    wrong=wrong,
    compared=compared,
    evaluation_charts=curves.evaluation_charts(runs),
    training_charts=training,
    long_curves=any(chart.is_long for chart in training),
    other_charts=curves.other_charts(runs),
    groups=groups,
    figures=[writing.figures(run) for run in runs],
    skipped=tables.skipped_counts(runs),
    skipped_lists=[tables.skipped_list(run) for run in runs],
    cost=resources.cost(runs, price),
    starts=[resources.starts(run) for run in runs],
    finetuning=[tables.finetuning(run) for run in runs],
    differences=tables.differences(runs),
    configs=[tables.config_sections(run) for run in runs],
  )


def probability(value: float) -> str:
  """Returns a probability in percent: 97 %, 3.1 %, 0.04 %, <0.01 %."""
  percent = 100 * value
  if percent < 0.01:
    return "<0.01 %"
  digits = 0 if percent >= 10 else 1 if percent >= 1 else 2
  return f"{percent:.{digits}f} %"


def heat_step(value: float) -> int:
  """Returns the colour of a probability, 0 to 10: ten times its square root.

  Early in training all of them are small; the root tells them apart.
  """
  return round(10 * max(value, 0.0) ** 0.5)


@contextlib.contextmanager
def _told(file: epath.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise UserError(
      f"--output={file}: cannot be written ({error.strerror or error})"
    ) from error
