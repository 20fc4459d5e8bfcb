"""docs/python.ipynb, the notebook that shows the Python face."""

import json

import pytest
import runs

NOTEBOOK = runs.ROOT / "docs" / "python.ipynb"


def cells():
  """Returns (tags, code) of each cell of code."""
  found = json.loads(NOTEBOOK.read_text())["cells"]
  return [
    (cell["metadata"].get("tags", ()), "".join(cell["source"]))
    for cell in found
    if cell["cell_type"] == "code"
  ]


def test_its_cells_run(tmp_path, monkeypatch, capsys):
  """One after the other, here, with the tiny config."""
  runs.scratch()
  monkeypatch.chdir(tmp_path)
  names, parameters = {}, 0
  for tags, code in cells():
    exec(code, names)
    if "parameters" in tags:
      parameters += 1
      changes = {k: v for k, v in runs.TINY.items() if k != "total_steps"}
      names.update(steps=2, changes=changes)
  assert parameters == 1
  assert names["run"].step == 2
  assert names["probabilities"].shape == (6, 10)
  assert names["vectors"].shape[0] == 3000
  output, error = capsys.readouterr()
  assert "must be a list of texts, such as" in output
  assert "Warning" not in error


def test_what_it_shows_is_small_and_whole():
  found = json.loads(NOTEBOOK.read_text())
  assert NOTEBOOK.stat().st_size < 40_000
  code = [cell for cell in found["cells"] if cell["cell_type"] == "code"]
  counts = [cell["execution_count"] for cell in code]
  assert counts == list(range(1, len(code) + 1)), "run anew from the top"
  kinds = [out["output_type"] for cell in code for out in cell["outputs"]]
  assert kinds and "error" not in kinds
  text = NOTEBOOK.read_text()
  assert "\\r" not in text and "Warning" not in text


@pytest.mark.slow
def test_it_runs_in_a_kernel(tmp_path, monkeypatch):
  nbformat = pytest.importorskip("nbformat")
  nbclient = pytest.importorskip("nbclient")
  pytest.importorskip("ipykernel")
  runs.scratch()
  monkeypatch.setenv("PYTHONPATH", str(runs.ROOT))
  monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  place = {"metadata": {"path": str(tmp_path)}}
  nbclient.NotebookClient(notebook, timeout=900, resources=place).execute()
  assert (tmp_path / "runs" / "notebook" / "config.json").exists()
  outputs = [out for c in notebook.cells for out in c.get("outputs", ())]
  said = "".join(out.get("text", "") for out in outputs)
  assert "100%" in said and "3000/3000" in said
  assert "\x1b" not in said and "Warning" not in said
