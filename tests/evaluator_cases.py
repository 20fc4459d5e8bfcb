"""Independent references that the evaluators' tests share."""

import numpy as np


def unit(vectors):
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def slow_recall(similarities, query_ids, candidate_ids, k):
  """Sorts every query's candidates, wrong ones first among equals."""
  hits = 0
  for row, query in zip(similarities, query_ids, strict=True):
    order = sorted(
      range(len(row)), key=lambda c: (-row[c], candidate_ids[c] == query)
    )
    hits += any(candidate_ids[c] == query for c in order[:k])
  return hits / len(similarities)
