"""What is exported gives the ids of training; AutoTokenizer is the judge."""

import io
import itertools
import json

from ml_collections import ConfigDict
import model_cases
import numpy as np
from peers import transformers
import pytest
import sentencepiece
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from big_siglip.data.text import make_tokenizer
from big_siglip.errors import UserError
from big_siglip.models import SigLIP
from big_siglip.weights import export, export_tokenizer, open_weights
from big_siglip.weights.preprocessing import find_preprocessing

pytestmark = pytest.mark.torch

LENGTH = 16
CAPTIONS = [
  "A dog runs along the beach; its ball is Red (no. 7).",
  "Two people sit at a table, eating an ice-cream.",
  "Three children in yellow coats: école, naïve, Straße & more",
  "The quick brown fox jumps over the lazy dogs of 1984",
]
TEXTS = [
  *CAPTIONS[:4],
  *(text.upper() for text in CAPTIONS[:4]),
  "",
  " \t\n",
  "  two   spaces,\r\nlines ",
  "</s> <s> <unk> <pad><0x41> [SEP] [PAD] <|endoftext|>",
  "Ｄｏｇ ﬁsh ½ … “quotes” 🐶🏖️ 犬が走る Собака σκύλος ΉΛΙΟΣ",
  "Tie\u0302\u0301ng Vie\u0323\u0302t \u1112\u1162\u1107\u1167\u11ab e\u0301",
  "zebrafinch Zebrafinch, zebra-finch ▁the ▁▁ x",
  "dogs " * 100,
]
_WORDS = ["".join(w) for w in itertools.product("bdklmnrst", "aeiou", "nrst")]
_WORDS = [first + last for first, last in zip(_WORDS, _WORDS[7:], strict=False)]
CORPUS = CAPTIONS * 9 + [
  " ".join(_WORDS[i : i + 9]).capitalize() for i in range(0, 170, 2)
]
LIBRARYS = {}  # The library's own ids: <unk> 0, <s> 1, </s> 2.
SIGLIPS = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
GEMMAS = dict(
  pad_id=0,
  eos_id=1,
  bos_id=2,
  unk_id=3,
  normalization_rule_name="identity",
  add_dummy_prefix=False,
  remove_extra_whitespaces=False,
)


def _sentencepiece(file, **settings):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS),
    model_writer=model,
    minloglevel=2,
    hard_vocab_limit=False,
    **{"vocab_size": 400, **settings},
  )
  file.write_bytes(model.getvalue())
  return str(file)


def _tokenizer_json(file, model, trainer, before, normalizer=None, added=()):
  made = tokenizers.Tokenizer(model)
  made.pre_tokenizer = before
  if normalizer:
    made.normalizer = normalizer
  made.train_from_iterator(CORPUS, trainer)
  made.add_tokens(list(added))
  made.save(str(file))
  return str(file)


def _trained(kind, **fields):
  ends = ["<pad>", "</s>", "<unk>"]
  return {
    "bytes": lambda: trainers.BpeTrainer(
      vocab_size=400,
      special_tokens=["<|endoftext|>"],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
    "bert": lambda: trainers.WordPieceTrainer(
      vocab_size=300,
      special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
      show_progress=False,
    ),
    "unigram": lambda: trainers.UnigramTrainer(
      vocab_size=200,
      special_tokens=ends,
      unk_token="<unk>",
      show_progress=False,
    ),
    "words": lambda: trainers.WordLevelTrainer(
      special_tokens=ends, show_progress=False
    ),
  }[kind]()


KINDS = {
  "bytes": lambda file: "bytes",
  **{
    f"{model_type}, {name}, {'bytes' if fallback else 'unknown'}": (
      lambda file, i=ids, m=model_type, f=fallback: _sentencepiece(
        file, model_type=m, byte_fallback=f, **i
      )
    )
    for model_type, (name, ids), fallback in itertools.product(
      ("unigram", "bpe"),
      (("siglip's", SIGLIPS), ("the library's", LIBRARYS)),
      (False, True),
    )
  },
  "gemma's": lambda file: _sentencepiece(
    file, model_type="bpe", byte_fallback=True, **GEMMAS
  ),
  "characters": lambda file: _sentencepiece(
    file, model_type="char", vocab_size=50
  ),
  "chosen symbols": lambda file: _sentencepiece(
    file, user_defined_symbols=["zebrafinch"], control_symbols=["<ctl>"]
  ),
  "byte-level": lambda file: _tokenizer_json(
    file, models.BPE(), _trained("bytes"), pre_tokenizers.ByteLevel()
  ),
  "WordPiece": lambda file: _tokenizer_json(
    file,
    models.WordPiece(unk_token="[UNK]"),
    _trained("bert"),
    pre_tokenizers.BertPreTokenizer(),
    normalizers.BertNormalizer(lowercase=True),
  ),
  "Unigram": lambda file: _tokenizer_json(
    file,
    models.Unigram(),
    _trained("unigram"),
    pre_tokenizers.Metaspace(),
    normalizers.NFKC(),
  ),
  "WordLevel": lambda file: _tokenizer_json(
    file,
    models.WordLevel(unk_token="<unk>"),
    _trained("words"),
    pre_tokenizers.Whitespace(),
  ),
}


def _data(tokenizer, **rules):
  rules = {"lowercase": True, "pad_id": 1, "clean": "none", **rules}
  return ConfigDict({"tokenizer": tokenizer, "resize": "bilinear", **rules})


def _load(exported, folder):
  """As the folder of a model: AutoTokenizer asks which one it is."""
  folder.mkdir(exist_ok=True)
  exported.save(folder)
  (folder / "config.json").write_text('{"model_type": "siglip"}')
  return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_training(tmp_path, kind):
  tokenizer = KINDS[kind](tmp_path / "own")
  for pad_id, (lowercase, clean) in itertools.product(
    (0, 1, 7), ((True, "none"), (False, "html"), (True, "canonical"))
  ):
    data = _data(tokenizer, pad_id=pad_id, lowercase=lowercase, clean=clean)
    theirs = _load(export_tokenizer.make(data, LENGTH), tmp_path / "hf")
    ours = make_tokenizer(tokenizer, lowercase, pad_id, clean)
    expected = ours(TEXTS, LENGTH)
    got = theirs(TEXTS, padding="max_length", truncation=True)
    np.testing.assert_array_equal(got["input_ids"], expected)
    # The file does it alone as well, where no text spells a special token.
    alone = tokenizers.Tokenizer.from_file(
      str(tmp_path / "hf" / "tokenizer.json")
    )
    ids = [alone.encode(text).ids for text in TEXTS if "</s>" not in text]
    rows = ["</s>" not in text for text in TEXTS]
    np.testing.assert_array_equal(ids, expected[rows])


def test_added_tokens_keep_their_ids(tmp_path):
  added = [
    tokenizers.AddedToken("zebrafinch", normalized=False),
    tokenizers.AddedToken("Zebra-Finch", normalized=False),
    tokenizers.AddedToken("<|photo|>", normalized=False, special=True),
    tokenizers.AddedToken("ice-cream", normalized=False),
  ]
  file = _tokenizer_json(
    tmp_path / "own",
    models.BPE(),
    _trained("bytes"),
    pre_tokenizers.ByteLevel(add_prefix_space=False),
    added=added,
  )
  size = tokenizers.Tokenizer.from_file(file).get_vocab_size()
  texts = [*TEXTS, "Zebra-Finch zebra-finch <|photo|> ICE-CREAM"]
  for lowercase in (True, False):
    data = _data(file, lowercase=lowercase)
    theirs = _load(export_tokenizer.make(data, LENGTH), tmp_path / "hf")
    ours = make_tokenizer(file, lowercase)
    got = theirs(texts, padding="max_length", truncation=True)["input_ids"]
    np.testing.assert_array_equal(got, ours(texts, LENGTH))
    assert size - 1 in np.array(got), "ice-cream"


def test_what_no_file_does_is_refused_before_anything_is_written(tmp_path):
  words = _sentencepiece(
    tmp_path / "words", model_type="word", vocab_size=30, **SIGLIPS
  )
  suffix = _sentencepiece(
    tmp_path / "suffix", treat_whitespace_as_suffix=True, **SIGLIPS
  )
  holes = json.loads(
    make_tokenizer(KINDS["WordLevel"](tmp_path / "holes"))._json
  )
  holes["model"]["vocab"] = {
    token: number + 5 * (number > 3)
    for token, number in holes["model"]["vocab"].items()
  }
  (tmp_path / "holes").write_text(json.dumps(holes))
  model = model_cases.model_config({}, dict(vocab_size=500, length=LENGTH))
  model.embed_dim = 32
  params = model_cases.random_params(SigLIP(model))
  for data, said in (
    (_data(words), "model_type=word: no tokenizer.json does the same"),
    (_data(suffix), "no tokenizer.json for transformers does what training"),
    (_data(str(tmp_path / "holes"), pad_id=5), "config.data.pad_id=5: "),
  ):
    config = ConfigDict({"model": model, "data": data})
    with pytest.raises(UserError, match=said) as error:
      export.to_huggingface(tmp_path / "out", params, config)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("clean", ["none", "html", "canonical"])
def test_a_sentencepiece_model_comes_back_as_it_was(tmp_path, clean, caplog):
  """With its own ids and the default padding, which were once not kept."""
  spiece = _sentencepiece(tmp_path / "own.model")
  size = make_tokenizer(spiece).vocab_size
  model = model_cases.model_config({}, dict(vocab_size=size, length=LENGTH))
  model.embed_dim = 32
  config = ConfigDict({"model": model, "data": _data(spiece, clean=clean)})
  params = model_cases.random_params(SigLIP(model))
  export.to_huggingface(tmp_path / "hf", params, config)
  assert ("but for HTML entities" in caplog.text) == (clean != "none")
  processor = transformers.AutoProcessor.from_pretrained(tmp_path / "hf")
  ours = make_tokenizer(spiece, clean=clean)
  got = processor(text=TEXTS, padding="max_length", truncation=True)
  np.testing.assert_array_equal(got["input_ids"], ours(TEXTS, LENGTH))
  found = find_preprocessing(open_weights(str(tmp_path / "hf")))
  kept = str(tmp_path / "hf" / "tokenizer.model")
  wanted = {**config.data, "tokenizer": kept}
  assert found.data_fields().items() >= wanted.items()
  own = (tmp_path / "own.model").read_bytes()
  assert (tmp_path / "hf" / "tokenizer.model").read_bytes() == own
