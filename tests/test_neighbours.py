"""Near-duplicates: against all cosines at once, and as a program."""

import csv
import json
import re

import jax
import model_cases
import numpy as np
from PIL import Image
import programs
import pytest

from big_siglip.embeddings import neighbours
from big_siglip.errors import UserError
from big_siglip.models import SigLIP


def vectors(count, seed=0):
  rng = np.random.default_rng(seed)
  rows = rng.standard_normal((count, 8)).astype(np.float32)
  neighbours.normalize(rows)
  return rows


@pytest.mark.parametrize("block", [7, 16, 50, 64])
def test_pairs_are_those_of_the_whole_matrix(block):
  rows = vectors(50)
  rows[40], rows[13] = rows[3], 0  # Equal ones, and one that is no vector.
  found = neighbours.find_pairs(rows, 0.7, block)
  cosine = (rows.astype(np.float64) @ rows.T.astype(np.float64)).clip(max=1)
  np.fill_diagonal(cosine, -np.inf)
  expected = np.argwhere(np.triu(cosine >= 0.7))
  assert len(expected) > 20
  pairs = np.stack([found.first, found.second], 1)
  assert sorted(map(tuple, pairs)) == sorted(map(tuple, expected))
  assert (pairs[0] == (3, 40)).all() and found.cosine[0] <= 1
  assert (np.diff(found.cosine) <= 0).all()
  np.testing.assert_allclose(found.cosine, cosine[tuple(pairs.T)], atol=1e-6)
  nearest = np.where(np.arange(50) == 13, np.nan, cosine.max(1))
  np.testing.assert_allclose(found.nearest, nearest, atol=1e-6)


def test_equal_rows_are_pairs_at_a_threshold_of_1():
  rows = np.concatenate([vectors(20), vectors(20)])
  found = neighbours.find_pairs(rows, 1.0, 16)
  assert (found.second - found.first == 20).all() and len(found.first) == 20


def test_groups_are_what_pairs_join_the_largest_first():
  first, second = np.array([4, 1, 0, 7]), np.array([6, 2, 1, 8])
  cosine = np.linspace(1, 0.9, 4, dtype=np.float32)
  pairs = neighbours.Pairs(first, second, cosine, np.zeros(10, np.float32))
  groups = neighbours.find_groups(pairs)
  assert [group.rows.tolist() for group in groups] == [
    [0, 1, 2],
    [4, 6],
    [7, 8],
  ]
  assert [group.pairs.tolist() for group in groups] == [[1, 2], [0], [3]]
  assert neighbours.numbers_of(groups, 4).tolist() == [2, 1, 1, 3]


def test_too_many_pairs_are_told_before_they_fill_the_memory():
  rows = np.tile(vectors(1), (100, 1))
  with pytest.raises(UserError, match="more than 1,000 pairs lie at --thresh"):
    neighbours.find_pairs(rows, 0.95, 32, most=1000)


def test_what_is_no_vector_is_left_out_and_lengths_are_mended():
  rows = vectors(5) * 2
  rows[1], rows[3, 0] = 0, np.nan
  assert neighbours.normalize(rows) == 2
  lengths = np.linalg.norm(rows, axis=1)
  np.testing.assert_allclose(lengths, [1, 0, 1, 0, 1], rtol=1e-6)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A model, and photos of which some are there twice, and one is none."""
  folder = tmp_path_factory.mktemp("neighbours")
  config = model_cases.model_config({}, dict(vocab_size=259))
  params = jax.device_put(model_cases.random_params(SigLIP(config)))
  data = {"tokenizer": "bytes", "lowercase": True, "clean": "none", "pad_id": 1}
  model_cases.save_model(
    folder / "model", params, config, {**data, "resize": "bilinear"}
  )
  photos = folder / "photos"
  photos.mkdir()
  rng = np.random.default_rng(0)
  for name in "abcd":
    pixels = rng.integers(0, 256, (3, 4, 3), np.uint8)
    image = Image.fromarray(pixels).resize((40, 30), Image.Resampling.BICUBIC)
    image.save(photos / f"{name}.png")
    if name in "ab":
      image.save(photos / f"{name} <i>.webp", quality=95)
  Image.open(photos / "b.png").save(photos / "b2.png")
  (photos / "none.jpg").write_text("no image")
  return folder


def call(*arguments):
  status, output, said = programs.call("tools/neighbours.py", *arguments)
  assert status == 0, said
  return output, said


GROUPS = [["b <i>.webp", "b.png", "b2.png"], ["a <i>.webp", "a.png"]]


def test_images_and_their_embeddings_give_the_same_groups(place, tmp_path):
  flags = [f"--checkpoint={place}/model", f"--images={place}/photos"]
  table, page = tmp_path / "pairs.csv", tmp_path / "near.html"
  output, _ = call(
    *flags, f"--output={table}", f"--page={page}", "--threshold=.99", "--json"
  )
  found = json.loads(output)
  assert (found["count"], found["skipped"]) == (7, 1)
  assert [group["keys"] for group in found["groups"]] == GROUPS
  with table.open(newline="") as file:
    rows = list(csv.DictReader(file))
  assert [row["group"] for row in rows].count("1") == 3 and len(rows) == 4
  assert float(rows[0]["similarity"]) == 1
  assert (rows[0]["key"], rows[0]["other"]) == ("b.png", "b2.png")
  text = page.read_text()
  assert "b &lt;i&gt;.webp" in text and "<i>" not in text
  assert "none.jpg: is no image of a known format" in text
  assert len(re.findall(r"<img src=.data:image/webp;base64,", text)) == 5
  folder = tmp_path / "vectors"
  status, _, said = programs.call(
    "tools/embed.py", *flags, f"--output={folder}"
  )
  assert status == 0, said
  output, _ = call(
    f"--embeddings={folder}", "--threshold=.99", "--json", f"--page={page}"
  )
  assert json.loads(output)["groups"] == found["groups"]
  assert len(re.findall("<img src", page.read_text())) == 5
  output, said = call(f"--embeddings={folder}", "--threshold=.99", "--limit=1")
  assert "7 compared: 4 pairs at 0.99 or above, 5 in 2 groups; 4 are" in output
  assert "3 alike, cosine 1.0000 down to 0.9" in output
  assert output.endswith("  and 1 more groups\n")


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--images=x"], "--images: --checkpoint=MODEL, which embeds them, too"),
    (["--embeddings=x", "--threshold=0"], "must be above 0 and at most 1"),
    (["--embeddings=x", "--output=x.txt"], "must end in one of .csv, .parquet"),
    (["--embeddings=x", "--page=x.pdf"], "must end in .html"),
    (["--embeddings=x", "--data=tar"], "--data: goes with --images"),
    (["--embeddings=docs"], "docs"),
    (["--checkpoint=x", "--images=configs"], "configs: holds no images"),
  ],
)
def test_a_mistake_is_one_line(flags, said):
  assert said in programs.said_in_one_line("tools/neighbours.py", *flags)
