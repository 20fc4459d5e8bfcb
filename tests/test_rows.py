"""Rows of evaluations, intervals of their metrics, and two of them compared."""

import json
import warnings

from etils import epath
import numpy as np
import programs
import pytest
import runs
from scipy import stats
from sklearn import metrics
from test_evaluators import (
  CLASS_NAMES,
  CLASSIFICATION,
  CORRUPT,
  evaluate,
  LINEAR,
  make_mesh,
  NO_FILE,
  PROBE,
  Source,
  spoil,
)

from big_siglip.errors import UserError
from big_siglip.evaluation import compare, intervals, reading, rows
from big_siglip.evaluators.scores import classified, plain, retrieved
from big_siglip.schema import words

RETRIEVAL = dict(kind="retrieval", batch_size=5, **NO_FILE)


class Some(Source):
  """One of the examples has a label that is no class."""

  def __getitem__(self, index):
    example = super().__getitem__(index)
    if index == 7:
      object.__setattr__(example, "label", 3)
    return example


@pytest.mark.parametrize("ending", words.TABLES)
@pytest.mark.parametrize(
  "spec",
  [CLASSIFICATION, RETRIEVAL, {**LINEAR, **PROBE}],
  ids=lambda spec: spec["kind"],
)
def test_a_file_gives_the_rows_back(spec, ending, tmp_path):
  table = evaluate(spec, make_mesh(1)).rows()
  file = epath.Path(tmp_path) / "new" / f"rows{ending}"
  rows.write(file, table)
  assert rows.read(file) == table
  assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_each_image_has_a_row():
  """One that is damaged, one without a class, and such as are not finite."""
  result = evaluate(CLASSIFICATION, make_mesh(2), Some(), spoil)
  table = result.rows()
  assert list(table) == [
    *("key", "row", "label", "right", "predicted", "score", "probability"),
    *("label_rank", "label_score", "note"),
  ]
  assert table["key"] == [f"picture_{i}.png" for i in range(19)]
  labels = [CLASS_NAMES[i % 3] for i in range(19)]
  labels[CORRUPT] = labels[7] = None
  assert table["label"] == labels
  notes = {i: note for i, note in enumerate(table["note"]) if note}
  assert notes.pop(CORRUPT) == "cannot be read"
  assert notes.pop(7) == "no class"
  assert set(notes.values()) == {"not finite"}
  for i in range(19):
    predicted, right = table["predicted"][i], table["right"][i]
    if i in (CORRUPT, 7):
      assert right is None
    else:
      assert right == (predicted == labels[i])
      assert right == (table["label_rank"][i] == 1)
    assert (predicted is None) == (i in notes or i == CORRUPT)
    if predicted is not None:
      # By the scale and bias of the tests' model.
      expected = 1 / (1 + np.exp(2.0 - 4.0 * table["score"][i]))
      assert table["probability"][i] == pytest.approx(expected, rel=1e-5)
  assert result.images == 17 and 0 < result.metrics["accuracy"] < 1


def test_each_query_has_a_row():
  table = evaluate(RETRIEVAL, make_mesh(1)).rows()
  number = table["way"].index("text_to_image")
  assert table["way"] == ["image_to_text"] * 18 + ["text_to_image"] * 34
  assert table["query"][:number] == table["key"][:number]
  assert table["query"][number] == "red 00"
  for i, rank in enumerate(table["rank"]):
    own = table["first"][i] == table["key"][i]
    if i < number:  # A caption ends in the number of its image.
      own = table["first"][i].split()[1][:-1] == table["key"][i][8:-4]
    assert own == (rank == 1) == table["right@1"][i]
    better = table["score"][i] - table["right_score"][i]
    assert better == 0 if rank == 1 else better > -1e-5


def test_text_that_tables_dislike_comes_back(tmp_path):
  hostile = ['a "quoted", name\n.png', "two\u2028lines", " ", "=1+1", "\ud800"]
  table = {
    "key": hostile,
    "label": hostile,
    "right": [True, None] * 2 + [False],
  }
  for ending in words.TABLES:
    file = epath.Path(tmp_path) / f"rows{ending}"
    rows.write(file, table)
    found = rows.read(file)
    assert found["key"] == [*hostile[:4], "\\ud800"]
    assert found["right"] == table["right"]


@pytest.mark.parametrize(
  ("content", "said"),
  [
    (b"", "holds no rows"),
    (b"key,name\na,b\n", "there is no column right, label"),
    (b"key,label,right\na,b,perhaps\n", "holds no rows"),
    (b"key,label,right\na,b\n", "holds no rows"),
    (b"\xff\xfe", "holds no rows"),
    (None, "cannot be read"),
  ],
)
def test_files_that_hold_no_rows_are_named(content, said, tmp_path):
  for ending in words.TABLES if content is not None else (".csv",):
    file = epath.Path(tmp_path) / f"rows{ending}"
    if content is not None:
      file.write_bytes(content)
    with pytest.raises(UserError) as error:
      rows.read(file)
    assert str(error.value).startswith(str(file))
    assert len(str(error.value).splitlines()) == 1
    assert ending != ".csv" or said in str(error.value)


def reference(statistic, *data, **options):
  """Returns SciPy's percentile interval."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Of classes that a resample lacks.
    found = stats.bootstrap(
      data, statistic, method="percentile", rng=1, **options
    )
  return np.array(found.confidence_interval)


def data(seed, images=120):
  rng = np.random.default_rng(seed)
  labels = rng.integers(4, size=images)
  predicted = np.where(
    rng.random(images) < 0.7, labels, rng.integers(4, size=images)
  )
  rank = np.where(predicted == labels, 1, rng.integers(2, 9, images))
  return labels, predicted, rank


def test_intervals_are_those_of_scipy():
  labels, predicted, rank = data(0)
  scores = classified(predicted == labels, rank, labels[:, None])
  for name, values in (("accuracy", predicted == labels), ("top5", rank <= 5)):
    expected = reference(np.mean, values)
    np.testing.assert_allclose(
      intervals.interval(scores[name]), expected, atol=0.004
    )
  expected = reference(
    metrics.balanced_accuracy_score, labels, predicted,
    paired=True, vectorized=False, n_resamples=2_000,
  )  # fmt: skip
  got = intervals.interval(scores["per_class"])
  np.testing.assert_allclose(got, expected, atol=0.008)
  assert got == intervals.interval(scores["per_class"])


def test_captions_are_drawn_with_their_image():
  """Five captions that are right together say no more than one."""
  rng = np.random.default_rng(3)
  of_image = rng.random(80) < 0.6
  rank = np.where(of_image.repeat(5), 1, 20)
  score = retrieved(rank, np.arange(80).repeat(5))["recall@1"]
  expected = reference(np.mean, of_image)
  np.testing.assert_allclose(intervals.interval(score), expected, atol=0.013)


def test_a_paired_difference_is_that_of_scipy():
  labels, first, rank = data(0)
  # What one gets wrong, the other mostly gets wrong, too.
  second = np.where(np.arange(120) % 9, first, labels)
  expected = reference(
    lambda a, b, axis: np.mean(b, axis) - np.mean(a, axis),
    *(first == labels, second == labels),
    paired=True,
  )
  pair = [
    classified(p == labels, rank, labels[:, None]) for p in (first, second)
  ]
  got = intervals.difference(*(scores["accuracy"] for scores in pair))
  np.testing.assert_allclose(got, expected, atol=0.004)
  expected = reference(
    lambda y, a, b: metrics.balanced_accuracy_score(y, b)
    - metrics.balanced_accuracy_score(y, a),
    *(labels, first, second),
    paired=True, vectorized=False, n_resamples=1_000,
  )  # fmt: skip
  got = intervals.difference(*(scores["per_class"] for scores in pair))
  np.testing.assert_allclose(got, expected, atol=0.01)


@pytest.mark.parametrize("count", [1, 3, 200])
def test_where_images_are_alike_the_limits_are_exact(count):
  for value in (0, 1):
    got = intervals.interval(plain(np.full(count, value)))
    exact = stats.binomtest(count * value, count).proportion_ci(0.95, "exact")
    np.testing.assert_allclose(got, exact, atol=1e-12)
  alike = plain(np.ones(count))
  low, high = intervals.difference(alike, alike)
  assert low == -high < 0 and high == pytest.approx(1 - 0.025 ** (1 / count))


def table_of(seed, count=60):
  labels, predicted, rank = (values.tolist() for values in data(seed, count))
  return {
    "key": [f"{i % 50}.png" for i in range(count)],  # Some occur twice.
    "label": list(map(str, labels)),
    "right": [p == y for p, y in zip(predicted, labels, strict=True)],
    "predicted": list(map(str, predicted)),
    "score": [0.5] * count,
    "label_rank": rank,
  }


def write_pair(folder, first, second):
  """Returns the paths of two files of rows."""
  paths = [folder / "a.csv", folder / "b.csv"]
  for path, table in zip(paths, (first, second), strict=True):
    rows.write(epath.Path(path), table)
  return list(map(str, paths))


def changed_table(table):
  """Returns other answers to the same images, in another order."""
  other = {k: list(v) for k, v in table.items()}
  for place in range(0, 60, 7):
    other["right"][place] = not table["right"][place]
    other["label_rank"][place] = 1 if other["right"][place] else 2
  return {k: v[10:50] + v[:10] + v[50:] for k, v in other.items()}


def test_two_evaluations_are_paired_by_key(tmp_path):
  first = table_of(1)
  second = changed_table(first)
  # One image is in each alone.
  first["key"][30], second["key"][-9] = "gone.png", "new.png"
  paths = write_pair(tmp_path, first, second)
  (one,) = compare.compare(*map(reading.read, paths))
  assert one.images == 58
  assert len(one.notes) == 2 and "gone.png" in one.notes[0]
  seen = [i for i in range(60) if i not in (30, 51)]
  right = np.array(first["right"])
  then = right.copy()
  then[::7] = ~then[::7]
  accuracy = one.differences[0]
  assert accuracy.metric == "accuracy"
  assert accuracy.before == pytest.approx(right[seen].mean())
  assert accuracy.after == pytest.approx(then[seen].mean())
  assert accuracy.low < accuracy.after - accuracy.before < accuracy.high
  (change,) = one.changes
  assert change.better == (then & ~right)[seen].sum() > 0
  assert change.worse == (right & ~then)[seen].sum() > 0
  keys = [first["key"][i] for i in seen if right[i] != then[i]]
  assert sorted(one.changed["key"]) == sorted(keys)
  assert one.changed["change"][0] == compare.WORSE


def test_mcnemar_is_that_of_the_binomial(tmp_path):
  first, second = table_of(1), table_of(1)
  first["key"] = second["key"] = [f"{i}.png" for i in range(60)]
  first["right"] = [True] * 3 + [False] * 57
  second["right"] = [False] * 3 + [True] * 9 + [False] * 48
  (one,) = compare.compare(
    *map(reading.read, write_pair(tmp_path, first, second))
  )
  (change,) = one.changes
  assert (change.worse, change.better) == (3, 9)
  assert change.p == pytest.approx(2 * stats.binom.cdf(3, 12, 0.5))


def spoiled_pair(folder, kind):
  first, second = table_of(1), table_of(1)
  if kind == "labels":
    second["label"][4] = "another"
  if kind == "images":
    second["key"] = [f"other/{key}" for key in second["key"]]
  if kind == "queries":
    second = evaluate(RETRIEVAL, make_mesh(1)).rows()
  return write_pair(folder, first, second)


@pytest.mark.parametrize(
  ("kind", "said"),
  [
    ("labels", "have other labels for 1 of 60 images, such as 4.png"),
    ("images", "share no image: '0.png' and 'other/0.png'"),
    ("queries", "one is of images, the other of queries"),
  ],
)
def test_what_cannot_be_compared_is_one_line(kind, said, tmp_path):
  paths = spoiled_pair(tmp_path, kind)
  assert said in programs.said_in_one_line("tools/compare.py", *paths)


def test_folders_are_compared_from_the_command_line(short_run, tmp_path):
  folders = [tmp_path / "a", tmp_path / "b"]
  for folder, kind in zip(
    folders, ("classification", "retrieval"), strict=True
  ):
    status, output, said = programs.call(
      "tools/evaluate.py",
      f"--checkpoint={short_run}",
      f"--output={folder}",
      *(f"--config={runs.CONFIG}", *runs.overrides(evals__test__kind=kind)),
    )
    assert status == 0, said
  assert "images are wrong" not in output and "test.csv" in output
  file = tmp_path / "changed.csv"
  for folder, count in zip(folders, (3, 6), strict=True):
    flags = [folder, folder / "results.json"]
    status, output, said = programs.call(
      "tools/compare.py", *flags, f"--output={file}", "--json"
    )
    assert status == 0, said
    found = json.loads(output)["evaluations"]["test"]
    assert found["images"] == 360 and len(found["metrics"]) == count
    assert all(m["difference"] == 0 for m in found["metrics"].values())
    assert file.read_text().count("\n") == 1
  # What is no result, and what has no rows.
  said = programs.said_in_one_line("tools/compare.py", short_run, folders[0])
  assert f"evaluate --checkpoint={short_run} --output=FOLDER" in said
  (folders[0] / "test.csv").unlink()
  said = programs.said_in_one_line("tools/compare.py", *folders[:1] * 2)
  assert "test.csv: cannot be read" in said
