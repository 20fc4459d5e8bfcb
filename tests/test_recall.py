"""Recall at k against hand-written, sorted and scikit-learn's values."""

from evaluator_cases import slow_recall, unit
import jax
import numpy as np
import pytest
from sklearn import metrics

from big_siglip.errors import UserError
from big_siglip.evaluators import recall as retrieval
from big_siglip.evaluators.scores import retrieved


def recall(queries, candidates, query_ids, candidate_ids, **kwargs):
  """The shares of queries whose match comes early enough."""
  arguments = (queries, candidates, query_ids, candidate_ids)
  rank = 1 + retrieval.rank_of_match(*arguments)
  scores = retrieved(rank, np.arange(len(rank)), **kwargs)
  return {name: score.mean() for name, score in scores.items()}


def recall_of(similarities, query_ids, candidate_ids, **kwargs):
  """`recall` of given similarities: the candidates are the unit axes."""
  similarities = np.asarray(similarities, np.float32)
  return recall(
    similarities,
    np.eye(similarities.shape[1], dtype=np.float32),
    np.asarray(query_ids),
    np.asarray(candidate_ids),
    **kwargs,
  )


def test_recall_of_a_matrix_done_by_hand():
  similarities = [
    [0.9, 0.1, 0.5, 0.2],  # Best match (column 0) first.
    [0.8, 0.3, 0.2, 0.4],  # Best match (column 3) second.
    [0.3, 0.4, 0.1, 0.2],  # Only match (column 2) last.
  ]
  got = recall_of(similarities, [7, 8, 9], [7, 8, 9, 8], ks=(1, 2, 3, 4, 5))
  assert got == {
    "recall@1": pytest.approx(1 / 3),
    "recall@2": pytest.approx(2 / 3),
    "recall@3": pytest.approx(2 / 3),
    "recall@4": 1.0,
    "recall@5": 1.0,
  }


@pytest.mark.parametrize("with_ties", [False, True])
@pytest.mark.parametrize("rows", [4096, 7])
def test_recall_equals_sorting_with_several_captions(
  with_ties, rows, monkeypatch
):
  monkeypatch.setattr(retrieval, "QUERIES", rows)
  monkeypatch.setattr(retrieval, "CANDIDATES", rows + 1)
  rng = np.random.default_rng(0)
  images, captions = np.arange(23), rng.permutation(np.arange(23).repeat(3))
  for _ in range(5):
    similarities = rng.normal(size=(23, 69)) + (images[:, None] == captions)
    if with_ties:
      similarities = similarities.round()
    similarities = similarities.astype(np.float32)
    to_text = recall_of(similarities, images, captions)
    to_image = recall_of(similarities.T, captions, images)
    for k in (1, 5, 10):
      assert to_text[f"recall@{k}"] == pytest.approx(
        slow_recall(similarities, images, captions, k)
      )
      assert to_image[f"recall@{k}"] == pytest.approx(
        slow_recall(similarities.T, captions, images, k)
      )
    assert 0 < to_text["recall@1"] < to_text["recall@10"] < 1


def test_recall_equals_scikit_learn_with_one_caption_each():
  rng = np.random.default_rng(1)
  queries = unit(rng.normal(size=(40, 8)).astype(np.float32))
  noise = rng.normal(size=(40, 8)).astype(np.float32)
  candidates = unit(queries + 0.6 * noise)
  ids = np.arange(40)
  got = recall(queries, candidates, ids, ids)
  for k in (1, 5, 10):
    expected = metrics.top_k_accuracy_score(ids, queries @ candidates.T, k=k)
    assert got[f"recall@{k}"] == pytest.approx(expected)
  assert 0.1 < got["recall@1"] < 0.9


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_constant_or_broken_embeddings_find_nothing(value):
  embeddings = np.full((20, 4), value, np.float32)
  got = recall(embeddings, embeddings, np.arange(20), np.arange(20))
  assert got == {"recall@1": 0.0, "recall@5": 0.0, "recall@10": 0.0}


def test_rounding_errors_do_not_break_ties():
  # A wrong candidate equal to the match but for the last bit of float32.
  below = np.nextafter(np.float32(0.7), np.float32(0))
  got = recall_of([[0.7, below, 0.1]], [0], [0, 1, 2], ks=(1, 2))
  assert got == {"recall@1": 0.0, "recall@2": 1.0}


def test_query_without_a_match_is_never_a_hit():
  got = recall_of([[0.7, 0.2], [0.1, 0.2]], [5, 1], [0, 1], ks=(1, 10))
  assert got == {"recall@1": 0.5, "recall@10": 0.5}


def test_memory_is_that_of_a_block_not_of_the_matrix():
  """200,000 x 200,000 similarities would be 160 GB."""

  def shape(*dims, dtype=np.float32):
    return jax.ShapeDtypeStruct(dims, dtype)

  blocks = -(-200_000 // retrieval.CANDIDATES)
  lowered = retrieval.count_before.lower(
    shape(retrieval.QUERIES, 64),
    shape(retrieval.QUERIES),
    shape(retrieval.QUERIES, dtype=np.int32),
    shape(blocks, retrieval.CANDIDATES, 64),
    shape(blocks, retrieval.CANDIDATES, dtype=np.int32),
  )
  memory = lowered.compile().memory_analysis()
  assert memory.argument_size_in_bytes < 60e6  # All candidates, once.
  block = retrieval.QUERIES * retrieval.CANDIDATES * 4
  assert memory.temp_size_in_bytes < 3 * block


def test_blocks_of_a_larger_search_equal_one_product():
  rng = np.random.default_rng(4)
  queries = unit(rng.normal(size=(5_000, 16)).astype(np.float32))
  noise = rng.normal(size=(5_000, 16)).astype(np.float32)
  candidates = unit(queries + 0.2 * noise)
  ids = rng.permutation(5_000)
  got = retrieval.rank_of_match(queries, candidates, ids, ids)
  similarities = queries.astype(np.float64) @ candidates.T.astype(np.float64)
  best = np.diag(similarities)
  expected = (similarities > best[:, None] - retrieval.TIE).sum(1) - 1
  assert np.mean(got != expected) < 1e-3  # Another rounding, on the very edge.
  assert 0.2 < np.mean(got == 0) < 0.9


@pytest.mark.parametrize("empty", ["queries", "candidates"])
def test_nothing_to_search_is_an_error(empty):
  some, none = np.ones((1, 4), np.float32), np.ones((0, 4), np.float32)
  pair = (none, some) if empty == "queries" else (some, none)
  ids = [np.arange(len(rows)) for rows in pair]
  with pytest.raises(UserError, match="there must be one of each at least"):
    recall(*pair, *ids)
