"""Tokenizers' files as transformers saves them, beside weights."""

import json

import numpy as np
from peers import transformers
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from big_siglip.data import vocabulary
from big_siglip.data.text import make_tokenizer
from big_siglip.errors import UserError
from big_siglip.weights import tokenizer_files

pytestmark = pytest.mark.torch

LENGTH = 24
TEXTS = ["a dog in a boat", "A Dog in a Boat", "zebrafinch and a <cat> here"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A SentencePiece model, and a tokenizer.json as SigLIP 2's."""
  folder = tmp_path_factory.mktemp("tokenizers")
  captions = [f"{text} number {n}" for n in range(40) for text in TEXTS]
  vocabulary.train(captions, folder / "spiece.model", vocab_size=309)
  made = tokenizers.Tokenizer(
    models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
  )
  made.normalizer = normalizers.Replace(" ", "▁")
  made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  made.decoder = decoders.Replace("▁", " ")
  special = ["<pad>", "<eos>", "<bos>", "<unk>"]
  trainer = trainers.BpeTrainer(
    vocab_size=330,
    special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
    show_progress=False,
  )
  made.train_from_iterator((text.lower() for text in captions), trainer)
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single="$A <eos>", special_tokens=[("<eos>", 1)]
  )
  made.save(str(folder / "tokenizer.json"))
  return folder


def _fast(files, **settings):
  return transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(files / "tokenizer.json"),
    eos_token="<eos>",
    pad_token="<pad>",
    model_max_length=LENGTH,
    padding_side="right",
    **settings,
  )


def _slow(files, **settings):
  settings = {"model_max_length": LENGTH, **settings}
  return transformers.SiglipTokenizer(
    str(files / "spiece.model"), model_input_names=["input_ids"], **settings
  )


def _ours(folder):
  """Returns the tokens of TEXTS by what lies in a folder alone."""
  file = tokenizer_files.find(folder)
  found = tokenizer_files.read(folder, file, make_tokenizer(file), LENGTH)
  return make_tokenizer(file, **found)(TEXTS, LENGTH)


def _check(folder, theirs, texts=TEXTS):
  expected = theirs(texts, padding="max_length", truncation=True)["input_ids"]
  np.testing.assert_array_equal(_ours(folder), expected)


@pytest.mark.parametrize("keeps", [False, True])
def test_case_is_kept_where_the_tokenizer_keeps_it(files, tmp_path, keeps):
  theirs = _slow(files, do_lower_case=not keeps)
  theirs.save_pretrained(tmp_path)
  ours = _ours(tmp_path)
  # Its class strips "<" and ">", as SigLIP's training did not.
  expected = theirs(TEXTS, padding="max_length", truncation=True)["input_ids"]
  np.testing.assert_array_equal(ours[:2], expected[:2])
  assert (ours[0] == ours[1]).all() != keeps


def test_tokens_added_to_a_tokenizer_json_are_tokens(files, tmp_path):
  theirs = _fast(files)
  theirs.add_tokens(["zebrafinch"])
  theirs.add_special_tokens({"additional_special_tokens": ["<cat>"]})
  theirs.save_pretrained(tmp_path)
  texts = [text.lower() for text in TEXTS]
  _check(tmp_path, theirs, texts)
  added = theirs.convert_tokens_to_ids(["zebrafinch", "<cat>"])
  assert set(added) <= set(_ours(tmp_path)[2].tolist())
  # A SentencePiece model beside it that lacks them does not go first.
  (tmp_path / "tokenizer.model").write_bytes(
    (files / "spiece.model").read_bytes()
  )
  (tmp_path / "added_tokens.json").write_text(
    json.dumps({"zebrafinch": added[0]})
  )
  _check(tmp_path, theirs, texts)
  with pytest.raises(UserError, match="added_tokens='Zebra': has capitals"):
    theirs.add_tokens(["Zebra"])
    theirs.save_pretrained(tmp_path)
    _ours(tmp_path)
  tell = json.loads((tmp_path / "tokenizer_config.json").read_text())
  tell["do_lower_case"] = False
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(tell))
  _check(tmp_path, theirs)


def test_tokens_added_to_sentencepiece_are_refused(files, tmp_path):
  theirs = _slow(files)
  theirs.add_tokens(["zebrafinch"])
  theirs.save_pretrained(tmp_path)
  assert (tmp_path / "added_tokens.json").exists()
  said = r"'zebrafinch' \(309\) was added to the tokenizer, and spiece.model h"
  with pytest.raises(UserError, match=said):
    _ours(tmp_path)
  (tmp_path / "added_tokens.json").unlink()  # The config has them too.
  with pytest.raises(UserError, match=said):
    _ours(tmp_path)


def test_a_tokenizer_json_alone_says_what_fills_the_end(files, tmp_path):
  made = tokenizers.Tokenizer.from_file(str(files / "tokenizer.json"))
  made.enable_padding(length=LENGTH, pad_id=2, pad_token="<bos>")
  made.enable_truncation(LENGTH)
  made.normalizer = normalizers.Sequence(
    [normalizers.Lowercase(), made.normalizer]
  )
  made.save(str(tmp_path / "tokenizer.json"))
  expected = [row.ids for row in made.encode_batch(TEXTS)]
  np.testing.assert_array_equal(_ours(tmp_path), expected)


def _spoil_config(folder, **changes):
  file = folder / "tokenizer_config.json"
  file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"padding_side": "left"}, "padding_side='left': must be right"),
    ({"truncation_side": "left"}, "truncation_side='left': must be right"),
    ({"add_bos_token": True}, "add_bos_token=True: must be false"),
    ({"add_eos_token": False}, "add_eos_token=False: must be true"),
    ({"model_max_length": 16}, "model_max_length=16: must be at least 24"),
    ({"model_max_length": "all"}, "model_max_length='all': must be at least"),
    ({"eos_token": "<unk>"}, "eos_token='<unk>': is not the end of a text in"),
    ({"pad_token": "[PAD]"}, "pad_token='[PAD]': is no token of"),
    ({"pad_token": {"content": "[PAD]"}}, "pad_token='[PAD]': is no token"),
    ({"do_lower_case": "no"}, "do_lower_case='no': must be true or false"),
    ({"sp_model_kwargs": {"enable_sampling": True}}, "nothing is sampled"),
    (
      {"model_input_names": ["input_ids", "attention_mask"]},
      "must be ['input_ids'] alone: SigLIP masks no token",
    ),
    ({"added_tokens_decoder": [1]}, "added_tokens_decoder=[1]: must be tok"),
  ],
)
def test_what_a_tokenizers_config_asks_for_is_done_or_refused(
  files, tmp_path, changes, said
):
  for theirs in (_slow(files), _fast(files)):
    theirs.save_pretrained(tmp_path)
    _spoil_config(tmp_path, **changes)
    with pytest.raises(UserError) as error:
      _ours(tmp_path)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    for file in tmp_path.iterdir():
      file.unlink()


@pytest.mark.parametrize(
  ("key", "value", "said"),
  [
    ("padding", {"direction": "Left"}, "padding.direction='Left': must be Ri"),
    ("truncation", {"direction": "Left"}, "truncation.direction='Left': must"),
    ("truncation", {"max_length": 8}, "truncation.max_length=8: must be at"),
    (
      "post_processor",
      {
        "type": "BertProcessing",
        "sep": ["<eos>", 1],
        "cls": ["<bos>", 2],
      },
      "post_processor='<bos> TEXT <eos>': must be TEXT <eos>",
    ),
  ],
)
def test_what_a_tokenizer_json_asks_for_is_done_or_refused(
  files, tmp_path, key, value, said
):
  content = json.loads((files / "tokenizer.json").read_text())
  whole = {
    "padding": {
      "strategy": "BatchLongest",
      "pad_to_multiple_of": None,
      "pad_id": 0,
      "pad_type_id": 0,
      "pad_token": "<pad>",
    },
    "truncation": {
      "direction": "Right",
      "max_length": LENGTH,
      "strategy": "LongestFirst",
      "stride": 0,
    },
  }
  content[key] = {**whole.get(key, {}), **value}
  (tmp_path / "tokenizer.json").write_text(json.dumps(content))
  with pytest.raises(UserError) as error:
    _ours(tmp_path)
  assert said in str(error.value)


def test_an_end_that_is_not_appended_is_told(files, tmp_path, caplog):
  content = json.loads((files / "tokenizer.json").read_text())
  content["post_processor"] = None
  (tmp_path / "tokenizer.json").write_text(json.dumps(content))
  assert (_ours(tmp_path) == 1).any(axis=1).all()
  assert "appends no end to a text; '<eos>' is appended" in caplog.text


def test_every_key_that_transformers_writes_is_known(files, tmp_path, caplog):
  small = {"vocab": {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}}
  made = [
    _slow(files),
    _fast(files),
    transformers.Siglip2Tokenizer(**small, merges=[]),
    transformers.GemmaTokenizer(**small, merges=[]),
  ]
  signature = transformers.PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES
  keys = {*signature}
  for theirs in made:
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    keys |= json.loads(file.read_text()).keys()
  # Of its base class, and of those that wrote published SigLIP files.
  keys |= {
    *("model_max_length", "padding_side", "truncation_side", "chat_template"),
    *("model_input_names", "clean_up_tokenization_spaces", "legacy"),
    *("split_special_tokens", "extra_special_tokens", "add_bos_token"),
    *("add_eos_token", "use_default_system_prompt", "add_prefix_space"),
    *("spaces_between_special_tokens", "added_tokens_decoder", "max_length"),
    *("stride", "truncation_strategy", "pad_to_multiple_of", "from_slow"),
    *("pad_token_type_id", "additional_special_tokens", "do_lower_case"),
  }
  known = tokenizer_files.HARMLESS | tokenizer_files.DONE
  assert not keys - known
  assert not tokenizer_files.HARMLESS & tokenizer_files.DONE
  _slow(files).save_pretrained(tmp_path)
  _spoil_config(tmp_path, novelty=3)
  _ours(tmp_path)
  assert "novelty=3 is passed over" in caplog.text


def test_what_fills_the_end_is_found_wherever_it_stands(files, tmp_path):
  theirs = _slow(files, pad_token="<pad>")
  theirs.save_pretrained(tmp_path)
  _check_pad(tmp_path, 0)
  _spoil_config(tmp_path, pad_token=None)
  _check_pad(tmp_path, 1)  # As its class pads.
  (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "<unk>"}')
  _check_pad(tmp_path, 2)
  _spoil_config(tmp_path, tokenizer_class=None)
  (tmp_path / "special_tokens_map.json").unlink()
  file = str(tmp_path / "spiece.model")
  found = tokenizer_files.read(tmp_path, file, make_tokenizer(file), LENGTH)
  assert "pad_id" not in found


def _check_pad(folder, number):
  file = str(folder / "spiece.model")
  found = tokenizer_files.read(folder, file, make_tokenizer(file), LENGTH)
  assert found["pad_id"] == number
