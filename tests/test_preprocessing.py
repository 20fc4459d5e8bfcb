"""Preprocessing as one value: carried as JSON, and compared."""

import dataclasses
import json

import pytest
import runs

from big_siglip.data.preprocessing import Preprocessing
from big_siglip.errors import UserError

VALUE = Preprocessing(16, "bilinear", 8, "bytes", True, "html", 1)


def test_json_gives_it_back():
  text = json.dumps(VALUE.as_dict() | {"logit_scale": 10.0})
  assert Preprocessing.from_dict(json.loads(text)) == VALUE
  assert Preprocessing.of(runs.config()).text_length == 16


def test_older_files_say_less():
  older = VALUE.as_dict()
  for name in ("clean", "crop", "crop_fraction", "fill", "mean", "std"):
    del older[name]
  found = Preprocessing.from_dict(older)
  assert found == dataclasses.replace(VALUE, clean="none")
  with pytest.raises(UserError, match="preprocessing: has no resize"):
    del older["resize"]
    Preprocessing.from_dict(older)


def test_a_line_for_each_difference(tmp_path):
  other = dataclasses.replace(VALUE, image_size=24, pad_id=0)
  assert VALUE.differences(other) == [
    "config.model.image.image_size=16, not 24",
    "config.data.pad_id=1, not 0",
  ]
  assert VALUE.differences(other, ("pad_id", "resize")) == [
    "config.data.pad_id=1, not 0"
  ]
  files = tmp_path / "a.model", tmp_path / "b.model"
  for file in files:
    file.write_text("one")
  one, two = (dataclasses.replace(VALUE, tokenizer=str(f)) for f in files)
  assert not one.differences(two) and not one.hashed().differences(two)
  files[1].write_text("two")
  assert len(one.differences(two)) == 1
