"""Conditions on the columns of embeddings, as pyarrow and SQL read them."""

import pyarrow as pa
from pyarrow import dataset
import pytest

from big_siglip.embeddings import filters
from big_siglip.errors import UserError

TABLE = pa.table(
  {
    "key": ["a/1", "a/2", "b/1", 'b/it\'s "2"'],
    "width": [50, 150, 250, None],
    "score": [0.5, 1.5, None, 3.0],
    "label": ["dog", "cat", None, "dog"],
    "good": [True, False, True, None],
    "two words": ["x", "y", "x", "y"],
    "embedding": [[1.0]] * 4,
  }
)


CASES = [
  ("width > 100", [1, 2]),
  ("width>100 AND width<=200.5", [1]),
  ("width < 100 or label = 'dog'", [0, 3]),
  ("label == \"dog\" or label = 'cat' and width > 100", [0, 1, 3]),
  ("(label = 'dog' or label = 'cat') and width > 100", [1]),
  ("width >= 150.5", [2]),
  ("width > 149.5 and width < 150.5", [1]),
  ("width = 150.5 or width = 50.0", [0]),
  ("width != 150.5", [0, 1, 2]),
  ("width <= 1e300 and width > -1e300", [0, 1, 2]),
  ("width < 3000000000 and score > -0.5", [0, 1]),
  ("not width > 100", [0]),
  ("not (width > 100 or label = 'dog')", []),
  ("label <> 'dog'", [1]),
  ("label in ('cat', 'fox')", [1]),
  ("label not in ('cat')", [0, 3]),
  ("label is null", [2]),
  ("label is not null and good = true", [0]),
  ("width between 50 and 150", [0, 1]),
  ("score not between -1 and +1e0", [1, 3]),
  ("key like 'a/%'", [0, 1]),
  ("key not like '%/1'", [1, 3]),
  ("key = 'b/it''s \"2\"'", [3]),
  ("`two words` = 'x' and \"two words\" != 'y'", [0, 2]),
]


@pytest.mark.parametrize("where,expected", CASES)
def test_conditions_are_those_of_sql(where, expected):
  found = filters.parse(where, TABLE.schema)
  rows = dataset.dataset(TABLE).to_table(columns={"is": found.arrow})["is"]
  assert [i for i, is_ in enumerate(rows.to_pylist()) if is_] == expected


@pytest.mark.parametrize("where,expected", CASES)
def test_duckdb_finds_the_same_rows(where, expected):
  duckdb = pytest.importorskip("duckdb")
  sql = filters.parse(where, TABLE.schema).sql.replace("`", '"')
  answer = duckdb.from_arrow(TABLE).filter(sql).project("key").fetchall()
  keys = sorted(TABLE["key"][i].as_py() for i in expected)
  assert sorted(key for (key,) in answer) == keys


@pytest.mark.parametrize(
  "where,said",
  [
    ("", "ends where a column must come"),
    ("width >", "ends where a value for 'width' must come"),
    ("width", "ends where a comparison of 'width' must come"),
    ("width > 1 and", "ends where a column must come"),
    ("(width > 1", "ends where '\\)' must come"),
    ("width > 1 height", "'height' is one too many"),
    ("width ? 1", "'\\? 1' is not understood"),
    ("width plus 1", "'plus' stands where one of"),
    ("height > 1", "no column 'height'; there are: key, width, score"),
    ("embedding = 1", "there is no column 'embedding'"),
    ("width > tall", "'tall' is no value"),
    ("width > '1'", "'width' is int64, and '1' is not"),
    ("label = 1", "'label' is string, and 1 is not"),
    ("good = 1", "'good' is bool, and 1 is not"),
    ("width like 'a'", "'width' is int64"),
    ("3 > width", "'3' stands where a column must"),
    ("label in 'a'", "\"'a'\" stands where '\\(' must"),
    ("key = 'open", '"\'open" is not understood'),
  ],
)
def test_mistakes_are_named(where, said):
  with pytest.raises(UserError, match=said) as error:
    filters.parse(where, TABLE.schema)
  assert str(error.value).startswith(f"--where={where}: ")
