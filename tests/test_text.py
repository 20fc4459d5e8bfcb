"""Token ids by SigLIP's rules."""

import pickle

import numpy as np
import pytest
import sentencepiece

from big_siglip.data import cleaning, text
from big_siglip.errors import UserError


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tokenizer")
  corpus = folder / "corpus.txt"
  words = "a small red circle left of the large blue square and one green star"
  corpus.write_text("\n".join([words, words[::-1], words.title()] * 20))
  # The ids of SigLIP's c4_en: <pad> 0, </s> 1, <unk> 2, no BOS.
  sentencepiece.SentencePieceTrainer.train(
    input=str(corpus),
    model_prefix=str(folder / "tiny"),
    vocab_size=50,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  return str(folder / "tiny.model")


@pytest.fixture(params=["bytes", "tiny", "1k", "ja_8k"])
def any_tokenizer(request):
  """A tokenizer made three ways and by two other people's models."""
  if request.param == "bytes":
    return text.make_tokenizer("bytes")
  if request.param == "tiny":
    return text.make_tokenizer(request.getfixturevalue("tiny_model"))
  folder = request.getfixturevalue("shared_data") / "tokenizers"
  return text.make_tokenizer(
    str(folder / f"sentencepiece_test_{request.param}.model")
  )


def test_short_text_ends_with_eos_and_padding(any_tokenizer):
  ids = any_tokenizer(["a red star"], 64)[0]
  (ends,) = np.nonzero(ids == any_tokenizer.eos_id)
  rest = ids[ends[0] + 1 :]
  assert len(rest) > 10 and set(rest.tolist()) == {any_tokenizer.pad_id}
  assert any_tokenizer.decode(ids) == "a red star"


def test_long_text_keeps_its_start_and_eos(any_tokenizer):
  caption = "a small red circle left of the large blue square " * 4
  long = any_tokenizer([caption], 512)[0]
  count = int(np.argmax(long == any_tokenizer.eos_id))  # Without EOS.
  # One too many, exactly full (its EOS takes the last place), one to spare.
  for length in (2, count - 1, count, count + 1):
    ids = any_tokenizer([caption], length)[0]
    np.testing.assert_array_equal(ids[:-1], long[: length - 1])
    assert ids[-1] == any_tokenizer.eos_id
  spare = any_tokenizer([caption], count + 2)[0]
  assert spare[-2:].tolist() == [any_tokenizer.eos_id, any_tokenizer.pad_id]


def test_ids_are_int32_of_exactly_the_length_and_inside_the_vocabulary(
  any_tokenizer,
):
  ids = any_tokenizer(["", "star", "\u65e5\u672c \U0001f600" * 30], 16)
  assert ids.shape == (3, 16) and ids.dtype == np.int32
  assert ids.min() >= 0 and ids.max() < any_tokenizer.vocab_size
  assert ids[0, 0] == any_tokenizer.eos_id


def test_tokens_are_those_of_the_model_and_no_bos(shared_data):
  path = shared_data / "tokenizers" / "sentencepiece_test_1k.model"
  processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
  expected = [*processor.encode("i saw a girl"), processor.eos_id()]
  ids = text.make_tokenizer(str(path), pad_id=0)(["I Saw a Girl"], 32)[0]
  np.testing.assert_array_equal(ids[: len(expected)], expected)
  assert not ids[len(expected) :].any()


def test_lowercase_changes_ascii_letters_alone(any_tokenizer):
  both = any_tokenizer(["A RED Star", "a red star"], 32)
  np.testing.assert_array_equal(both[0], both[1])
  # tf.strings.lower leaves other alphabets as they are.
  upper, lower = text.make_tokenizer("bytes")(["\u00c9", "\u00e9"], 8)
  assert (upper != lower).any()
  upper, lower = text.make_tokenizer("bytes", lowercase=False)(["A", "a"], 8)
  assert (upper != lower).any()


def test_byte_ids_are_those_of_byt5():
  ids = text.make_tokenizer("bytes", pad_id=0)(["az"], 5)
  np.testing.assert_array_equal(ids, [[ord("a") + 3, ord("z") + 3, 1, 0, 0]])
  assert text.ByteTokenizer().vocab_size == 259


def test_pickled_tokenizer_gives_the_same_ids(any_tokenizer):
  copy = pickle.loads(pickle.dumps(any_tokenizer))
  caption = ["two big pink crosses above a tiny star"]
  np.testing.assert_array_equal(any_tokenizer(caption, 20), copy(caption, 20))
  assert copy.vocab_size == any_tokenizer.vocab_size


def test_missing_tokenizer_file_names_the_field(tmp_path):
  with pytest.raises(UserError, match="config.data.tokenizer='.*no.model'"):
    text.make_tokenizer(str(tmp_path / "no.model"))


@pytest.mark.parametrize("content", [b"", b"not a model", b"\0" * 500])
def test_file_that_is_not_sentencepiece_names_the_field(tmp_path, content):
  path = tmp_path / "bad.model"
  path.write_bytes(content)
  with pytest.raises(UserError) as e:
    text.make_tokenizer(str(path))
  assert "is not a SentencePiece model" in str(e.value)
  assert "config.data.tokenizer" in str(e.value) and "\n" not in str(e.value)


def test_pad_id_outside_the_vocabulary_is_refused(tiny_model):
  for tokenizer in ("bytes", tiny_model):
    with pytest.raises(UserError, match="config.data.pad_id=9999"):
      text.make_tokenizer(tokenizer, pad_id=9999)


def test_canonical_text_has_no_punctuation_case_or_extra_space():
  assert cleaning.canonicalize(" A  Photo_of: the dog's\tbed! ") == (
    "a photo of the dogs bed"
  )
  assert cleaning.canonicalize("A photo of a {}.", keep_punctuation="{}") == (
    "a photo of a {}"
  )
  assert cleaning.canonicalize("A photo of a {}.") == "a photo of a"
