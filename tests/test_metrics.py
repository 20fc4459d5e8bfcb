"""metrics.jsonl, events and the terminal."""

import io
import json
import math
import os
import struct
import subprocess
import sys

from etils import epath
import numpy as np
import pytest

from big_siglip import metrics, progress
from big_siglip.errors import UserError
from big_siglip.run import meter, wandb_run

_LOGGING = {"project": "tests", "entity": None, "name": None, "tags": ["a"]}


def _writer(workdir, start_step=0, evaluated_step=None):
  return metrics.MetricsWriter(
    workdir,
    start_step=start_step,
    evaluated_step=start_step if evaluated_step is None else evaluated_step,
    total_steps=9,
    config={},
  )


def _write(workdir, *records, **options):
  writer = _writer(workdir, **options)
  for step, values in records:
    writer.write(step, values)
  writer.close()


def test_what_is_written_is_read(tmp_path):
  _write(tmp_path, (1, {"loss": 2.5}), (1, {"evals/a/accuracy": 0.5}))
  assert metrics.read_metrics(tmp_path) == [
    {"step": 1, "loss": 2.5},
    {"step": 1, "evals/a/accuracy": 0.5},
  ]


def test_what_is_not_finite_is_null(tmp_path):
  _write(tmp_path, (1, {"loss": math.nan, "grad_norm": math.inf, "x": 1}))
  line = (tmp_path / "metrics.jsonl").read_text()
  assert "NaN" not in line and "Infinity" not in line
  assert json.loads(line) == {
    "step": 1,
    "loss": None,
    "grad_norm": None,
    "x": 1,
  }


def test_lines_after_the_resumed_step_are_dropped(tmp_path):
  _write(tmp_path, *[(step, {"loss": 1.0}) for step in (2, 4, 6)])
  _write(tmp_path, (6, {"loss": 3.0}), start_step=4)
  read = [(m["step"], m["loss"]) for m in metrics.read_metrics(tmp_path)]
  assert read == [(2, 1.0), (4, 1.0), (6, 3.0)]


def test_an_evaluation_that_will_be_taken_again_is_dropped(tmp_path):
  _write(
    tmp_path,
    (4, {"loss": 1.0}),
    (4, {"evals/a/accuracy": 0.5}),
  )
  _write(tmp_path, start_step=4, evaluated_step=3)
  assert metrics.read_metrics(tmp_path) == [{"step": 4, "loss": 1.0}]


def test_a_torn_line_is_dropped_wherever_it_is_torn(tmp_path):
  _write(tmp_path, (1, {"loss": 1.0}), (2, {"loss": 2.0}))
  path = tmp_path / "metrics.jsonl"
  whole = path.read_text()
  second = whole.index("\n") + 1
  for end in range(second, len(whole)):
    path.write_text(whole[:end])
    _write(tmp_path, (3, {"loss": 3.0}), start_step=2)
    read = [(m["step"], m["loss"]) for m in metrics.read_metrics(tmp_path)]
    assert read == [(1, 1.0), (3, 3.0)], end


def test_events_are_written_for_every_number(tmp_path):
  _write(tmp_path, (1, {"loss": 2.5, "evals/a/accuracy": 0.5}))
  (file,) = (tmp_path / "tensorboard").iterdir()
  records = list(_records(file.read_bytes()))
  assert any(b"loss" in r and struct.pack("<f", 2.5) in r for r in records)
  assert any(b"evals/a/accuracy" in r for r in records)


def _records(data):
  """Yields the records of a TFRecord file: length, crc, bytes, crc."""
  while data:
    (length,) = struct.unpack("<Q", data[:8])
    yield data[12 : 12 + length]
    assert len(data) >= 16 + length
    data = data[16 + length :]


def test_lines_on_the_terminal_show_step_and_loss(tmp_path, capsys):
  _write(tmp_path, (3, {"loss": 2.5, "grad_norm": 1.0}))
  assert capsys.readouterr().out == "step 3/9  loss 2.5\n"


class _Clock:
  now = 0.0

  def __call__(self):
    return self.now


def test_rates_are_of_the_steps_since_they_were_last_read(monkeypatch):
  clock = _Clock()
  monkeypatch.setattr(meter.time, "perf_counter", clock)
  import runs

  made = meter.Meter(runs.config(), num_devices=1)
  clock.now = 100.0
  made.step_done()  # Compiling, which does not count.
  for _ in range(4):
    with made.waiting():
      clock.now += 0.5
    clock.now += 1.5
    made.step_done()
  rates = made.read()
  assert rates["examples_per_second"] == 16 / 2.0
  assert rates["data_wait"] == 0.25
  assert made.read() == {}


def test_utilization_counts_terms_too(monkeypatch):
  clock = _Clock()
  monkeypatch.setattr(meter.time, "perf_counter", clock)
  monkeypatch.setattr(meter.flops, "peak_flops", lambda device: 1e9)
  import runs

  from big_siglip.models import flops
  from configs import terms

  config = runs.config(model__image__pooling="map").unlock()
  config.terms = {
    "words": terms.captioning(depth=1),
    "self": terms.distillation(
      masked=0.0,
      local_count=1,
      local_size=8,
      prototypes=32,
      hidden=16,
      bottleneck=8,
    ),
  }
  made = meter.Meter(config, num_devices=2)
  made.step_done()
  clock.now = 0.5
  made.step_done()
  # A block of width 32 that looks at patches of as many numbers.
  image, text, batch = config.model.image, config.model.text, config.batch_size
  patch = int(np.sqrt(image.image_size**2 // _patches(image)))
  length, patches = text.length, _patches(image)
  block = 2 * length * (4 * 32**2 + 2 * 32 * 64) + 4 * length**2 * 32
  block += 2 * length * 2 * 32**2 + 2 * patches * 2 * 32**2
  block += 4 * length * patches * 32
  head = 2 * ((32 + 16) * 16 + 16 * 8 + 8 * 32)
  crop = flops.image_flops(image, (8 // patch) ** 2)
  whole = flops.image_flops(image, patches)
  own = 3 * block + whole + 3 * (crop + head) + head
  expected = flops.flops_per_step(config) + batch * own
  np.testing.assert_allclose(made.read()["mfu"], expected / 0.5 / 2e9)


def _patches(image):
  from big_siglip.schema import sizes

  return sizes.grid_side(image) ** 2


def test_pytorch_is_not_imported_where_it_is_installed(tmp_path):
  pytest.importorskip("torch")
  program = (
    "import sys\n"
    "from big_siglip.metrics import MetricsWriter\n"
    f"writer = MetricsWriter({str(tmp_path)!r}, start_step=0, "
    "evaluated_step=0, total_steps=1, config={})\n"
    "writer.write(1, {'loss': 1.0})\n"
    "writer.close()\n"
    "assert 'torch' not in sys.modules\n"
    ""
  )
  subprocess.run([sys.executable, "-c", program], check=True)


def test_the_last_numbers_sum_up_a_run(tmp_path):
  _write(
    tmp_path,
    (1, {"loss": 2.5, "examples_per_second": 3.0}),
    (1, {"evals/a/accuracy": 0.5}),
    (2, {"loss": math.nan, "logit_bias": -5.0}),
  )
  assert metrics.last_metrics(tmp_path) == {
    "step": 2,
    "loss": 2.5,
    "logit_bias": -5.0,
    "evals/a/accuracy": 0.5,
  }


def test_a_bar_and_no_reader_end_no_run(tmp_path, monkeypatch):
  """As `python main.py ... | head` in a terminal."""
  reader, writer = os.pipe()
  os.close(reader)
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr(sys, "stderr", terminal)
  with os.fdopen(writer, "w", buffering=1) as output:
    monkeypatch.setattr(sys, "stdout", output)
    with progress.speaking():
      made = _writer(tmp_path)
      for step in (1, 2):
        made.step_done()
        made.write(step, {"loss": 2.5})
        made.write(step, {"evals/a/accuracy": 0.5})
      made.close()
  assert len(metrics.read_metrics(tmp_path)) == 4
  assert "2/9" in terminal.getvalue() and "loss=2.5" in terminal.getvalue()


def test_a_run_keeps_its_id_at_wandb(tmp_path, monkeypatch):
  """Two starts are one run there, and two folders of one name are two."""
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  monkeypatch.setenv("WANDB_DIR", str(tmp_path))
  config = {"logging": _LOGGING}
  ids = []
  for folder in ("a/run", "a/run", "b/run"):
    place = epath.Path(tmp_path / folder)
    place.mkdir(parents=True, exist_ok=True)
    run = wandb_run.WandbRun(place, config)
    run.log(1, {"loss": 2.5})
    run.close()
    ids.append(json.loads((place / wandb_run.FILE).read_text())["id"])
  assert ids[0] == ids[1] != ids[2]
  assert len(list((tmp_path / "a/run/wandb").glob(f"*run-*-{ids[0]}"))) >= 1


def test_the_id_at_wandb_is_kept(tmp_path):
  place = epath.Path(tmp_path)
  own = wandb_run.find_id(place)
  assert wandb_run.find_id(place) == own
  (tmp_path / wandb_run.FILE).write_text("{")
  with pytest.raises(UserError, match=r"wandb.json: damaged"):
    wandb_run.find_id(place)
  (tmp_path / "old" / "wandb").mkdir(parents=True)  # Of a run of before.
  assert wandb_run.find_id(place / "old") == "old"


def test_pictures_are_events(tmp_path):
  picture = np.zeros((5, 7, 3), np.uint8)
  writer = _writer(tmp_path)
  writer.draw(3, {"evals/a/chart": picture})
  writer.close()
  (file,) = (tmp_path / "tensorboard").iterdir()
  (record,) = (r for r in _records(file.read_bytes()) if b"\x89PNG" in r)
  assert b"evals/a/chart" in record
