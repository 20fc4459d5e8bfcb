"""Scores of captions and boxes: counted by hand, and against COCO's own tools.

The numbers named THEIRS are what pycocoevalcap 1.2 gave, with its Java
tokenizer (OpenJDK 17), and sacrebleu 2.6.0 for BLEU (tokenize="none",
smooth_method="none"), on these very captions.
"""

import csv
import math

import numpy as np
import pytest

from big_siglip.evaluators import caption_metrics
from big_siglip.evaluators.caption_tokens import tokenize


@pytest.mark.parametrize(
  "text, theirs",
  [
    ("A dog's ball isn't red.", "a dog 's ball is n't red"),
    (
      "They'll go, I'd say; we've seen it!",
      "they 'll go i 'd say we 've seen it",
    ),
    ("He can't; I cannot.", "he ca n't i can not"),
    ("Don't wanna gonna gotta.", "do n't wan na gon na got ta"),
    ("A sign says \"STOP\" and 'go'.", "a sign says stop and go"),
    (
      "T-shirt, ice-cream -- and a man - sits",
      "t-shirt ice-cream and a man sits",
    ),
    (
      "Room (with a view) [here]",
      "room -lrb- with a view -rrb- -lsb- here -rsb-",
    ),
    ("$5.99 & 50% off, 1,000 items.", "$ 5.99 & 50 % off 1,000 items"),
    ("Mr. Smith at 5 p.m. in the U.S.", "mr. smith at 5 p.m. in the u.s."),
    ("black/white 1/2 10/12/2020", "black/white 1/2 10/12/2020"),
    ("a man in a hat... waiting...", "a man in a hat waiting"),
    ("the dogs' toys", "the dogs toys"),
    ("rock 'n' roll, rock'n'roll", "rock 'n' roll rock 'n' roll"),
    ("it's 10:30 at St. Mary's", "it 's 10:30 at st. mary 's"),
    (
      "see www.example.com or me@example.org",
      "see www.example.com or me@example.org",
    ),
    (
      "caf\u00e9 \u201cquoted\u201d \u2018single\u2019 \u2014 dash",
      "caf\u00e9 quoted single dash",
    ),
    ("What?! No!!", "what ?! no !!"),
    ("y'all ain't", "y' all ai n't"),
    ("two-year-old's", "two-year-old 's"),
    ("1980s '80s, the 1990's", "1980s '80s the 1990 's"),
    ("A man;a dog,a cat.", "a man a dog a cat"),
    ("o'clock O'Brien let's", "o'clock o'brien let 's"),
    ("'tis the season, 'twas", "'t is the season 't was"),
    ("12:30pm #5 5'10\" tall", "12:30 pm # 5 5 10 tall"),
    ("he'd've shouldn't've", "he 'd 've should n't 've"),
    ("R&B, h&m, rock & roll", "r&b h & m rock & roll"),
    ("J. Smith, plan b.", "j. smith plan b."),
    ("No. 5, he said no.", "no. 5 he said no"),
    ("bird's-eye view", "bird 's eye view"),
    ("do n't , it 's", "do n't it 's"),
    ("\u65e5\u672c \u4eba", "\u65e5\u672c \u4eba"),
    ("...", ""),
    ("", ""),
  ],
)
def test_words_are_those_of_the_stanford_tokenizer(text, theirs):
  assert " ".join(tokenize(text)) == theirs


WRITTEN = (
  "A dog runs through the green grass.",
  "Two men aren't riding their bikes on a road.",
  "a girl in a pink T-shirt",
  "The man's dog (a big one) jumps!",
  "A dog runs.",
  "",
)
TRUE = (
  (
    "A brown dog is running through the grass.",
    "The dog runs through the green grass , quickly .",
  ),
  (
    "Two men ride bikes on the road.",
    "Two cyclists aren't riding their bikes on a road today.",
  ),
  ("A girl in a pink t-shirt stands in front of a house with a red door.",),
  ("The man's dog (a big one) jumps!",),
  ("A cat sleeps.", "The cat is asleep on a chair."),
  ("A bird.",),
)
THEIR_CIDER = (
  4.628091668887729,
  4.635549842814966,
  1.4090957645955133,
  10.0,
  0.0,
  0.0,
)
THEIR_BLEU = 0.5957004922007889


def _words(texts):
  return [tokenize(text) for text in texts]


def test_cider_and_bleu_are_those_of_cocos_tools():
  words, true = _words(WRITTEN), list(map(_words, TRUE))
  found = caption_metrics.cider(words, true)
  np.testing.assert_allclose(found, THEIR_CIDER, rtol=1e-12)
  counts = caption_metrics.bleu_counts(words, true)
  found = caption_metrics.bleu(counts.sum(axis=0))
  np.testing.assert_allclose(found, THEIR_BLEU, rtol=1e-12)


@pytest.mark.parametrize(
  "shift, their_cider, their_bleu",
  [
    (0, 0.77264201868681, 0.20776439631319537),
    (1, 0.05324119412843551, 0.023308176744411586),
  ],
)
def test_so_they_are_on_captions_of_photos(
  shared_data, shift, their_cider, their_bleu
):
  """The first of five against the others, of its own photo or of the next."""
  by_image = {}
  with (shared_data / "flickr1k" / "captions.csv").open() as file:
    for row in csv.DictReader(file):
      by_image.setdefault(row["image"], []).append(tokenize(row["caption"]))
  texts = list(by_image.values())
  written = [texts[(i + shift) % len(texts)][0] for i in range(len(texts))]
  true = [captions[1:] for captions in texts]
  cider = caption_metrics.cider(written, true).mean()
  np.testing.assert_allclose(cider, their_cider, rtol=1e-12)
  counts = caption_metrics.bleu_counts(written, true).sum(axis=0)
  np.testing.assert_allclose(
    caption_metrics.bleu(counts), their_bleu, rtol=1e-12
  )


def test_cider_counted_by_hand():
  """Two images; what both say weighs nothing.

  "a red dog": idf of "a" is log 2 - log 2 = 0, of all else log 2. Unigrams:
  {red, dog} against {red, dog, runs}: 2 / sqrt(2 * 3). Bigrams {a red, red dog}
  against {a red, red dog, dog runs}: the same. Trigrams {a red dog} against {a
  red dog, red dog runs}: 1 / sqrt(2). One bigram apart.
  """
  written = [["a", "red", "dog"], ["a", "cat"]]
  true = [[["a", "red", "dog", "runs"]], [["a", "cat"]]]
  by_n = (2 * 2 / math.sqrt(6) + 1 / math.sqrt(2)) / 4
  penalty = math.exp(-1 / 72)
  expected = [10 * by_n * penalty, 10 * 2 / 4]
  found = caption_metrics.cider(written, true)
  np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_cider_cuts_what_is_said_again_and_again():
  """min(3, 1) * 1 / (3 * 1) of unigrams; the plain cosine would be 1."""
  written = [["dog", "dog", "dog"], ["x"]]
  true = [[["dog"]], [["y"]]]
  found = caption_metrics.cider(written, true)
  penalty = math.exp(-(2**2) / 72)
  np.testing.assert_allclose(found, [10 / 4 / 3 * penalty, 0], rtol=1e-12)


def test_cider_of_one_image_and_of_none():
  assert caption_metrics.cider([["a"]], [[["a"]]]).tolist() == [0]
  assert caption_metrics.cider([], []).shape == (0,)


def test_bleu_counted_by_hand():
  """Seven "the" against at most two: the example of Papineni et al. 2002."""
  true = [
    ["the", "cat", "is", "on", "the", "mat"],
    ["there", "is", "a", "cat", "on", "the", "mat"],
  ]
  counts = caption_metrics.bleu_counts([["the"] * 7], [true])
  assert counts.tolist() == [[7, 7, 2, 0, 0, 0, 7, 6, 5, 4]]
  assert caption_metrics.bleu(counts[0]) == 0
  # Of two references as near, the shorter; one word short: exp(1 - 5 / 4).
  words = list("abcd")
  counts = caption_metrics.bleu_counts(
    [words], [[[*words, "e"], [*words, "f"]]]
  )
  assert counts.tolist() == [[4, 5, 4, 3, 2, 1, 4, 3, 2, 1]]
  np.testing.assert_allclose(caption_metrics.bleu(counts[0]), math.exp(-0.25))
  counts = caption_metrics.bleu_counts([words], [[words[:3], [*words, "e"]]])
  assert counts[0, 1] == 3
  both = caption_metrics.bleu(np.stack([counts[0], 0 * counts[0]]))
  assert both.shape == (2,) and both[0] == 1 and both[1] == 0


def test_exact_is_word_for_word():
  written = [["a", "dog"], ["a", "cat"], []]
  true = [[["the", "dog"], ["a", "dog"]], [["a", "cat", "!"]], [["a"]]]
  assert caption_metrics.exact(written, true).tolist() == [True, False, False]


def test_overlap_of_boxes():
  one = np.array([0, 0, 0.5, 0.5])
  others = [
    [0, 0, 0.5, 0.5],
    [0, 0, 0.5, 1],  # Twice as wide: a half.
    [0.25, 0.25, 0.75, 0.75],  # 1/16 of 7/16.
    [0.5, 0.5, 1, 1],  # They touch.
    [0.5, 0, 0, 0.5],  # Upside down.
    [np.nan] * 4,
    [0.2, 0.2, 0.2, 0.2],
  ]
  found = caption_metrics.overlap(one, np.array(others))
  np.testing.assert_allclose(found, [1, 0.5, 1 / 7, 0, 0, 0, 0], atol=1e-12)
  assert caption_metrics.overlap(np.zeros(4), np.zeros(4)) == 0


def test_overlap_is_that_of_painted_boxes():
  """Counted pixel by pixel, on a grid that boxes lie on."""
  rng, side = np.random.default_rng(0), 12

  def draw(count):
    first, last = np.sort(rng.integers(0, side + 1, (2, count, 2)), axis=0)
    return np.concatenate([first, last], axis=-1)

  def paint(boxes):
    image = np.zeros((len(boxes), side, side), bool)
    for i, (top, left, bottom, right) in enumerate(boxes):
      image[i, top:bottom, left:right] = True
    return image

  first, second = draw(200), draw(200)
  one, two = paint(first), paint(second)
  both, any_ = (
    f(one, two).sum((1, 2)) for f in (np.logical_and, np.logical_or)
  )
  expected = both / np.maximum(1, any_)
  found = caption_metrics.overlap(first / side, second / side)
  np.testing.assert_allclose(found, expected, atol=1e-12)
