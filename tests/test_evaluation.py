"""What is evaluated, and how results are written and drawn."""

import json

from etils import epath
from ml_collections import ConfigDict
from PIL import Image
import pyarrow as pa
from pyarrow import parquet
import pytest
import runs

from big_siglip import build, command_line
from big_siglip.errors import UserError
from big_siglip.evaluation import pictures, results
from big_siglip.evaluators import Result

EVALS = sorted((runs.ROOT / "configs" / "evals").glob("*.py"))
DIGITS = str(runs.ROOT / "configs" / "evals" / "digits.py")


def parse(*arguments):
  return command_line.parse_evaluation(["evaluate.py", *arguments])


@pytest.mark.parametrize("file", EVALS, ids=lambda file: file.stem)
def test_every_file_of_evaluations_checks_out(file):
  config, evals = parse(f"--evals={file}")
  assert config is None
  trained = runs.config()
  changed = results.with_evals(trained, None, evals)
  assert set(changed.evals) == set(evals)
  assert set(trained.evals) == {"test"}, "the run's own is as it was"


def test_evaluations_are_overridden_by_name():
  _, evals = parse(
    f"--evals={DIGITS}:health.loss_batch_size=16",
    "--evals.zeroshot.classes_file=names.txt",
  )
  assert evals.health.loss_batch_size == 16
  assert evals.zeroshot.classes_file == "names.txt"


@pytest.mark.parametrize("file", EVALS, ids=lambda file: file.stem)
def test_no_two_sections_share_a_field(file):
  """A placeholder in two places would be overridden in both."""
  _, evals = parse(f"--evals={file}")
  for name, section in evals.items():
    for field in section:
      if section[field] is None and field != "prior":
        kind = int if field in ("max_captions", "size", "stride") else str
        value = "7" if kind is int else "x"
        _, changed = parse(f"--evals={file}", f"--evals.{name}.{field}={value}")
        others = [other[field] for other in changed.values() if field in other]
        assert others.count(kind(value)) == 1


def test_mistakes_in_evaluations_are_told_together():
  with pytest.raises(UserError) as error:
    parse(f"--evals={DIGITS}:health.batch=3,fewshot.seeds=0,linear.l2=1")
  lines = str(error.value).splitlines()
  assert lines[0] == "3 mistakes:"
  for said in ("evals.health.batch: ", "evals.fewshot.seeds=0", "linear.l2"):
    assert any(said in line for line in lines[1:])
  with pytest.raises(UserError, match="--evals=nowhere.py: no such file"):
    parse("--evals=nowhere.py")
  with pytest.raises(UserError, match="--evals=FILE.py must be given"):
    parse("--evals.test.kind=retrieval")


def test_a_config_that_preprocesses_otherwise_is_one_line():
  trained = runs.config()
  same = runs.config(data__flip=True, batch_size=32, evals__test__every=5)
  assert results.with_evals(trained, same, None).evals.test.every == 5
  other = runs.config(data__resize="bicubic", model__text__length=20)
  with pytest.raises(UserError) as error:
    results.with_evals(trained, other, None)
  message = str(error.value)
  assert "config.data.resize='bicubic', not 'bilinear'" in message
  assert "config.model.text.length=20, not 16" in message
  assert len(message.splitlines()) == 1


def test_a_tokenizer_is_known_by_its_bytes(tmp_path):
  files = [tmp_path / "a.model", tmp_path / "b.model", tmp_path / "c.model"]
  for file, content in zip(files, ("one", "one", "two"), strict=True):
    file.write_text(content)
  trained, same, other = (
    runs.config(data__tokenizer=str(file)) for file in files
  )
  assert not results.preprocessing_problems(trained, same)
  (problem,) = results.preprocessing_problems(trained, other)
  assert "config.data.tokenizer" in problem


def test_what_to_evaluate_is_given_once_and_right():
  trained = runs.config()
  with pytest.raises(UserError, match="give one of the two"):
    results.with_evals(trained, trained, ConfigDict())
  with pytest.raises(UserError, match="config.evals is empty"):
    results.with_evals(trained, None, ConfigDict())
  # A run of an earlier version, whose evaluations lack a field.
  with trained.unlocked():
    del trained.evals.test.canonicalize
  with pytest.raises(UserError, match="evals.test.canonicalize: missing"):
    results.with_evals(trained, None, None)


@pytest.mark.parametrize(
  ("field", "value", "said"),
  [
    (
      "classes_file",
      "/none",
      "config.evals.test.classes_file='/none': No such",
    ),
    ("templates", ("{}{}",), "config.evals.test: templates has '{}{}'"),
  ],
)
def test_a_mistake_in_making_names_the_evaluation(field, value, said):
  config = runs.config()
  with config.unlocked():
    config.evals.test[field] = value
  with pytest.raises(UserError) as error:
    build.evaluators(config, build.mesh(config))
  assert str(error.value).startswith(said)


def test_a_label_that_is_not_there_is_one_of_the_evaluation(tmp_path):
  table = pa.table({"image": [b"never decoded"], "caption": ["one"]})
  parquet.write_table(table, tmp_path / "a.parquet")
  config = runs.config()
  with config.unlocked():
    config.evals.test.update(
      data="parquet", path=str(tmp_path), split="all", label_key="kind"
    )
  with pytest.raises(UserError) as error:
    build.evaluators(config, build.mesh(config))
  assert "config.evals.test.label_key='kind'" in str(error.value)
  assert "config.data" not in str(error.value)


@pytest.mark.parametrize(
  ("message", "said"),
  [
    ("config.evals: size=3: must be 4", "config.evals.one.size=3: must be 4"),
    ("config.evals: has no pairs", "config.evals.one: has no pairs"),
    ("none can be read", "config.evals.one: none can be read"),
    ("config.evals.one.path='x': bad", "config.evals.one.path='x': bad"),
  ],
)
def test_a_mistake_in_running_names_the_evaluation(message, said):
  def evaluator(params):
    raise UserError(message)

  with pytest.raises(UserError) as error:
    results.run({"one": evaluator}, None)
  assert str(error.value) == said


CURVE = {"predicted": [0.1, None], "observed": [0.2, None], "count": [7, 0]}
FITTED = dict(ece=0.1, scale=5.0, bias=-2.0, prior=0.5)
RESULTS = {
  "classes": Result(
    {"accuracy": 0.75},
    {
      "classes": ["cat", "dog"],
      "class_accuracy": [0.5, 1.0],
      "confused": [["cat", "dog", 1]],
      "confusion": [[1, 1], [0, 2]],
    },
  ),
  "many": Result(
    {"accuracy": 0.75},
    {
      "classes": [str(i) for i in range(200)],
      "class_accuracy": [1.0] * 200,
      "confused": [["cat", "dog", 1]],
    },
  ),
  "calibration": Result(
    {**FITTED, **{f"refit/{k}": v for k, v in FITTED.items()}},
    {"reliability": CURVE, "refit": CURVE},
  ),
  "health": Result(
    {"positive/wrong": 0.5, "negative/wrong": 0.0},
    {"edges": [-1.0, 0.0, 1.0], "positive": [0, 3], "negative": [9, 1]},
  ),
  "recall": Result(
    {"image_to_text/recall@1": 0.5, "text_to_image/recall@1": 0.25}, {}
  ),
  "languages": Result(
    {
      f"{prefix}{way}/recall@1": 0.5
      for prefix in ("", "en/", "fr/")
      for way in ("image_to_text", "text_to_image")
    },
    {},
  ),
  "shots": Result(
    {"accuracy_1shot": 0.5}, {"accuracy_by_seed": {"1": [0.4], "5": [0.6]}}
  ),
  "captions": Result(
    {"cider": 0.5, "shuffled_cider": 0.1},
    {"cider_by_image": {"edges": [0.0, 1.0, 2.0], "share": [0.8, 0.2]}},
  ),
  "boxes": Result(
    {"accuracy@0.5": 0.5},
    {"accuracy_by_iou": {"iou": [0.25, 0.5, 0.75], "share": [0.9, 0.5, 0.1]}},
  ),
  "plain": Result({"accuracy": float("nan")}, {}),
}


def test_every_kind_is_drawn_but_for_one_without_curves(tmp_path):
  files = pictures.draw(epath.Path(tmp_path), RESULTS)
  assert {file.stem for file in files} == set(RESULTS) - {"plain"}
  for file in files:
    assert min(Image.open(file).size) > 150


def test_results_are_written_as_json_and_as_a_table(tmp_path):
  file = epath.Path(tmp_path) / "new" / "results.json"
  names = ("classes", "plain")
  for name in names:
    results.write(
      file,
      checkpoint=epath.Path("run/checkpoints/7"),
      evals=ConfigDict({n: {"kind": "classification"} for n in names}),
      results={name: RESULTS[name]},
    )
  written = json.loads(file.read_text())
  assert written["step"] == 7
  assert set(written["evaluations"]) == set(names)
  assert written["evaluations"]["plain"]["metrics"] == {"accuracy": None}
  details = written["evaluations"]["classes"]["details"]
  assert details == RESULTS["classes"].details
  assert results.flat(RESULTS)["evals/plain/accuracy"] is None
  assert "accuracy" in results.table(RESULTS)
