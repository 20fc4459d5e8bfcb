"""What was measured: a JSON line for each finished training.

A study asks for trainings; those that stand in the file are not done again, so
a killed study goes on where it was, and studies share what they have in common.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import time

import numpy as np

from big_siglip.errors import UserError
from studies.data import OVERRIDES
from studies.training import Cell, scores, train

CHOOSING_SEED = 100  # Not among those that are reported.


class Records:
  """The trainings of a folder.

  Attributes:
    folder: where results.jsonl lies.
  """

  def __init__(self, folder: pathlib.Path):
    """Reads what is there; leaves out a line that a kill cut short.

    Raises:
      UserError: what is there is of other models than `studies.data` has now.
    """
    self.folder = folder
    folder.mkdir(parents=True, exist_ok=True)
    models, file = json.dumps(OVERRIDES, indent=2), folder / "models.json"
    if file.exists() and file.read_text() != models:
      raise UserError(
        f"--output={folder}: holds trainings of other models (models.json); "
        "must be another folder"
      )
    file.write_text(models)
    self._path = folder / "results.jsonl"
    self._lines = {}
    text = self._path.read_text() if self._path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
      self._path.write_text(whole)
    for line in whole.splitlines():
      record = json.loads(line)
      self._lines[_key(record)] = record

  def choose(self, cell: Cell, rates: Sequence[float]) -> float:
    """Returns the learning rate of the best validation score, one seed each."""
    records = self.trainings(cell, rates, [CHOOSING_SEED] * len(rates))
    scores = [record["validation"] for record in records]
    return rates[int(np.argmax(scores))]

  def measure(
    self, cell: Cell, rates: Sequence[float], seeds: Sequence[int]
  ) -> list[dict]:
    """Returns a record for each seed, at the rate that `choose` chooses."""
    rate = self.choose(cell, rates)
    return self.trainings(cell, [rate] * len(seeds), seeds)

  def trainings(
    self, cell: Cell, rates: Sequence[float], seeds: Sequence[int]
  ) -> list[dict]:
    """Returns a record for each pair of rate and seed; trains what is missing.

    A record holds the cell, "seed", "learning_rate", the scores "validation"
    and "test", "first_loss", "last_loss" (mean of the last tenth), "rise" (the
    most that the loss ever rose above its lowest value before, over the first
    loss), "duplicate_share" (of all pairs, where looked for), and
    "seconds" of the whole call, compilation included, over its trainings.
    """
    wanted = [
      {**dataclasses.asdict(cell), "learning_rate": rate, "seed": seed}
      for rate, seed in zip(rates, seeds, strict=True)
    ]
    if any(_key(record) not in self._lines for record in wanted):
      self._train(cell, wanted)
    return [self._lines[_key(record)] for record in wanted]

  def _train(self, cell: Cell, wanted: list[dict]) -> None:
    start = time.perf_counter()
    rates, seeds = (
      [record[name] for record in wanted] for name in ("learning_rate", "seed")
    )
    trained = train(cell, rates, seeds)
    validation, test = (
      scores(cell, trained.params, split) for split in ("validation", "test")
    )
    seconds = (time.perf_counter() - start) / len(wanted)
    tenth = -(-trained.loss.shape[1] // 10)
    with self._path.open("a") as file:
      for i, record in enumerate(wanted):
        loss = trained.loss[i].astype(np.float64)
        lowest = np.minimum.accumulate(loss)
        measured = {
          "validation": validation[i],
          "test": test[i],
          "first_loss": float(loss[0]),
          "last_loss": float(loss[-tenth:].mean()),
          "rise": float((loss - lowest).max() / loss[0]),
          "seconds": round(seconds, 2),
        }
        if trained.duplicate_pairs is not None:
          pairs = cell.batch_size * (cell.batch_size - 1)
          share = trained.duplicate_pairs[i].mean() / pairs
          measured["duplicate_share"] = float(share)
        assert not measured.keys() & record.keys()
        record |= measured
        if _key(record) not in self._lines:
          self._lines[_key(record)] = record
          file.write(json.dumps(record) + "\n")
    print(_summary(cell, wanted), flush=True)


def _key(record: dict) -> tuple:
  fields = [field.name for field in dataclasses.fields(Cell)]
  return tuple(record[name] for name in (*fields, "learning_rate", "seed"))


def _summary(cell: Cell, records: list[dict]) -> str:
  tests = " ".join(f"{record['test']:.3f}" for record in records)
  rates = sorted({record["learning_rate"] for record in records})
  seconds = sum(record["seconds"] for record in records)
  return f"{cell} rates {rates}: {tests} ({seconds:.0f} s)"
