"""Files of `tokenizers`, texts of every kind, and vocabularies made here."""

import csv
import json
import pathlib
import pickle
import random

from ml_collections import ConfigDict
import model_cases
import numpy as np
import programs
import pytest
import runs
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from big_siglip.data import vocabulary
from big_siglip.data.cleaning import prepare
from big_siglip.data.text import make_tokenizer
from big_siglip.errors import BadExample, UserError
from big_siglip.models import SigLIP
from big_siglip.schema.words import CLEANINGS
from big_siglip.weights import export, open_weights
from big_siglip.weights.preprocessing import find_preprocessing

LENGTH = 24
CAPTIONS = [
  "A dog runs along the beach; its ball is Red.",
  "Two people sit at a table, eating an ice-cream.",
  "ÉCOLE: three children in yellow coats",
] * 20


def _invented(count):
  """Returns captions of words that nobody knows, enough for 900 pieces."""
  rng = random.Random(0)
  syllables = [a + b for a in "bcdfghklmnprstvwz" for b in "aeiou"]
  words = [
    "".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(600)
  ]
  return [" ".join(rng.choices(words, k=9)).capitalize() for _ in range(count)]


@pytest.fixture(scope="module")
def captions():
  """1,000 real ones where they lie beside the checkout, or invented ones."""
  file = runs.ROOT.parent / "shared" / "data" / "flickr1k" / "captions.csv"
  if not file.exists():
    return [*_invented(997), *CAPTIONS[:3]]
  with file.open() as stream:
    rows = [row["caption"] for row in csv.DictReader(stream)]
  return rows[:997] + CAPTIONS[:3]


@pytest.fixture(scope="module")
def gemma_like(tmp_path_factory, captions):
  """A tokenizer.json as SigLIP 2's: BPE of pieces, ids, spaces and bytes."""
  made = tokenizers.Tokenizer(
    models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
  )
  made.normalizer = normalizers.Replace(" ", "▁")
  made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  made.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  )
  special = ["<pad>", "<eos>", "<bos>", "<unk>"]
  trainer = trainers.BpeTrainer(
    vocab_size=900,
    special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
    show_progress=False,
  )
  made.train_from_iterator((text.lower() for text in captions), trainer)
  file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
  made.save(str(file))
  return str(file)


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory, captions):
  file = tmp_path_factory.mktemp("sentencepiece") / "deep" / "mine.model"
  texts = [prepare(text, "none", True) for text in captions]
  vocabulary.train(texts, file, vocab_size=360)
  return str(file)


@pytest.fixture(params=["bytes", "sentencepiece_model", "gemma_like"])
def tokenizer(request):
  path = request.param
  path = path if path == "bytes" else request.getfixturevalue(path)

  def make(clean="none"):
    return make_tokenizer(path, pad_id=0, clean=clean)

  return make


def test_tokens_equal_the_librarys_own(gemma_like, captions):
  """Its truncation, padding and template are the reference for our rules."""
  theirs = tokenizers.Tokenizer.from_file(gemma_like)
  theirs.post_processor = tokenizers.processors.TemplateProcessing(
    single="$A <eos>", special_tokens=[("<eos>", 1)]
  )
  theirs.enable_truncation(LENGTH)
  theirs.enable_padding(length=LENGTH, pad_id=0, pad_token="<pad>")
  # ASCII letters alone become small.
  texts = [
    "".join(c.lower() if "A" <= c <= "Z" else c for c in t) for t in captions
  ]
  expected = [row.ids for row in theirs.encode_batch(texts)]
  ours = make_tokenizer(gemma_like, pad_id=0)
  got = ours(captions, LENGTH)
  np.testing.assert_array_equal(got, expected)
  assert (got[:, -1] == 1).any() and (got[:, -1] == 0).any()
  assert ours.vocab_size == theirs.get_vocab_size()
  again = pickle.loads(pickle.dumps(ours))
  np.testing.assert_array_equal(again(captions[:9], LENGTH), got[:9])
  upper = make_tokenizer(gemma_like, pad_id=0, lowercase=False)
  assert (upper(captions[:9], LENGTH) != got[:9]).any()


def test_a_special_token_in_a_caption_is_but_letters(gemma_like):
  ours = make_tokenizer(gemma_like, pad_id=0)
  ids = ours(["<eos> and <pad>"], 40)[0]
  assert ours.decode(ids) == "<eos> and <pad>"
  assert np.argmax(ids == 1) > 5


ODD = {
  "half a surrogate pair": "a \ud83d dog",
  "two halves": "a \ud83d\udc36 dog",
  "NUL": "a \0dog",
  "zero width": "a\u200b \u200ddog\ufeff",
  "right to left": "כלב על החוף \u202edog",
  "emoji": "👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈",
  "ligature and full width": "\ufb01sh Ｄｏｇ ①",
  "combining": "e\u0301 " + "a" + "\u0301" * 300,
  "control": "a\x07\x1b[31m dog\r\n\tx",
  "private use and not a character": "\ue000\uffff\U0010ffff",
  "piece's own space": "a▁dog ▁▁",
  "nothing": "",
  "spaces": " \u3000\u00a0 ",
  "entity": "&amp;&#0;&#xd800;&#1114112;&nosuch; &amp;amp;",
  "long": "dog " * 20_000,
}


@pytest.mark.parametrize("clean", CLEANINGS)
@pytest.mark.parametrize("name", ODD)
def test_any_text_becomes_tokens(tokenizer, name, clean):
  tokenizer = tokenizer(clean)
  ids = tokenizer([ODD[name], "a dog"], LENGTH)
  assert ids.shape == (2, LENGTH) and ids.dtype == np.int32
  assert ids.min() >= 0 and ids.max() < tokenizer.vocab_size
  assert (ids == tokenizer.eos_id).sum(axis=1).tolist() == [1, 1]
  assert tokenizer.decode(ids[1]) == "a dog"
  tokenizer.decode(ids[0]).encode()


def test_bytes_fall_back_and_nothing_is_unknown(
  gemma_like, sentencepiece_model
):
  text = "שלום 🐶 ñ"
  for path in (gemma_like, sentencepiece_model):
    ours = make_tokenizer(path, pad_id=0)
    assert ours.decode(ours([text], 60)[0]) == text


@pytest.mark.parametrize(
  ("text", "html", "canonical"),
  [
    ("A &amp; B", "a & b", "a b"),
    ("A &amp;amp; B", "a & b", "a b"),
    ("caf&eacute;  &lt;3\n", "café <3", "café 3"),
    ("snake_case, It's!", "snake_case, it's!", "snake case its"),
    ("ÉCOLE", "École", "école"),
  ],
)
def test_cleaning_does_what_it_says(text, html, canonical):
  assert prepare(text, "html", True) == html
  assert prepare(text, "canonical", True) == canonical
  assert prepare(text, "none", False) == text


def test_odd_files_are_named(tmp_path, gemma_like):
  def error(content, **rules):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UserError) as raised:
      make_tokenizer(str(path), **rules)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)

  assert "is no tokenizer.json (" in error('{"a": 1}')
  assert "is no tokenizer.json (" in error("{")
  assert "is not a SentencePiece model or" in error("hello")
  made = json.loads(pathlib.Path(gemma_like).read_text())
  text = json.dumps(made).replace("<eos>", "<end>")
  assert "must have a token for the end: one of <eos>" in error(text)
  said = error(json.dumps(made), pad_id=9_999)
  assert "config.data.pad_id=9999: must lie in [0, 900)" in said


def _config(tokenizer, **data):
  model = model_cases.model_config(
    dict(size="mu/16", image_size=32),
    dict(vocab_size=900, length=LENGTH),
    embed_dim=32,
  )
  rules = dict(lowercase=True, pad_id=0, resize="bilinear", clean="none")
  return ConfigDict(
    {"model": model, "data": {"tokenizer": tokenizer, **rules, **data}}
  )


@pytest.mark.torch
def test_a_folder_with_tokenizer_json_alone_comes_in_and_goes_out(
  tmp_path, gemma_like, captions, caplog
):
  transformers = pytest.importorskip("transformers")
  config = _config(gemma_like, clean="canonical")
  params = model_cases.random_params(SigLIP(config.model))
  export.to_huggingface(tmp_path / "hf", params, config)
  assert "config.data.clean='canonical': the exported tokenizer" in caplog.text
  names = {file.name for file in (tmp_path / "hf").iterdir()}
  assert "tokenizer.json" in names
  assert not any(name.endswith(".model") for name in names)
  found = find_preprocessing(open_weights(str(tmp_path / "hf")))
  assert found.clean == "canonical", "as our own file says"
  (tmp_path / "hf" / "preprocessing.json").unlink()
  found = find_preprocessing(open_weights(str(tmp_path / "hf")))
  assert found.data_fields() == {
    "tokenizer": str(tmp_path / "hf" / "tokenizer.json"),
    "lowercase": True,
    "clean": "none",
    "pad_id": 0,  # As its config says; the vocabulary is not Gemma's.
    "resize": "bilinear",
    "crop": "none",
    "crop_fraction": 1.0,
    "fill": (0, 0, 0),
  }
  processor = transformers.AutoProcessor.from_pretrained(tmp_path / "hf")
  theirs = processor(
    text=captions, padding="max_length", truncation=True, max_length=LENGTH
  )
  for path in (gemma_like, found.tokenizer):
    ours = make_tokenizer(path, pad_id=0, clean="canonical")
    np.testing.assert_array_equal(ours(captions, LENGTH), theirs["input_ids"])


def test_runs_and_bundles_keep_a_tokenizer_json(tmp_path, gemma_like):
  from etils import epath

  from big_siglip.run import workdir

  workdir.keep_tokenizer(epath.Path(tmp_path), gemma_like)
  kept = workdir.find_tokenizer(epath.Path(tmp_path))
  assert kept == str(tmp_path / "tokenizer.json")
  kept, given = pathlib.Path(kept), pathlib.Path(gemma_like)
  assert kept.read_bytes() == given.read_bytes()


def test_a_trained_model_has_siglips_ids(sentencepiece_model, captions):
  model = sentencepiece.SentencePieceProcessor(model_file=sentencepiece_model)
  ids = (model.pad_id(), model.eos_id(), model.unk_id(), model.bos_id())
  assert ids == (0, 1, 2, -1)
  assert model.vocab_size() == 360
  pieces = {model.id_to_piece(i) for i in range(360)}
  assert set("abcdefghijklmnopqrstuvwxyz0123456789") <= pieces
  assert "<0xFF>" in pieces
  for pad_id in (0, 1):
    make_tokenizer(sentencepiece_model, pad_id=pad_id)(captions, LENGTH)


class _Source:
  """Captions of every kind, and an example that cannot be read."""

  texts = (("A dog",), ("", "x" * 20_000, "nul \0 here"), ODD.values())

  def __len__(self):
    return 300

  def __getitem__(self, index):
    if index == 7:
      raise BadExample("is no image", "image")

    class example:
      texts = [f"{t} {index}" if t else "" for t in self.texts[index % 3]]

    return example


def test_training_streams_counts_and_repeats(tmp_path):
  for name in ("one", "two"):
    texts = vocabulary.Captions(_Source(), "none", True)
    vocabulary.train(texts, tmp_path / name, vocab_size=330, max_captions=900)
  # The unread one, and two of every three examples have one that is empty and
  # one that is too long.
  assert texts.skipped == 1 + 99 * 2 + 100 * 2
  assert texts.count > 1_000
  assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_tool_trains_from_a_folder(tmp_path):
  folder = tmp_path / "photos"
  folder.mkdir()
  rows = [("image", "caption")]
  for number, text in enumerate(CAPTIONS):
    (folder / f"{number}.jpg").write_bytes(b"not looked at")
    rows.append((f"{number}.jpg", text))
  with (folder / "captions.csv").open("w") as file:
    csv.writer(file).writerows(rows)
  output = tmp_path / "mine.model"
  flags = [f"--path={folder}", "--split=all", f"--output={output}"]
  tool = "tools/train_tokenizer.py"
  status, printed, said = programs.start(
    tool, *flags, "--vocab_size=310", "--json"
  )
  assert status == 0, said
  assert json.loads(printed) == {
    "output": str(output),
    "captions": 60,
    "skipped": 0,
    "vocab_size": 310,
    "eos_id": 1,
  }
  for extra, expected in (
    ((), f"--output={output}: exists already"),
    ((f"--output={output}2", "--vocab_size=99"), "--vocab_size=99: must be"),
    ((f"--output={output}2", "--max_captions=5"), "must be in 101 to"),
    ((f"--output={output}2", f"--vocab_size={10**12}"), "must be in 1 to"),
    ((f"--output={output}2", "--clean=much"), "--clean=much: must be one of"),
    ((f"--output={output}2", "--data=nothing"), "--data='nothing': must be"),
  ):
    assert expected in programs.said_in_one_line(tool, *flags, *extra)


def test_too_few_captions_for_a_vocabulary_are_named(tmp_path):
  for texts, size, said in (
    (CAPTIONS, 100_000, "these captions have pieces for"),
    (CAPTIONS, 50, "must be above"),
    ([], 1_000, "no vocabulary can be made"),
  ):
    with pytest.raises(UserError, match=said) as error:
      vocabulary.train(texts, tmp_path / "m", vocab_size=size)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "m").exists()
