"""The table of the fields of evaluations: types, words and ranges.

configs/base.py and configs/dense.py say what each is for.
"""

import functools

from big_siglip.schema import sources, words
from big_siglip.schema.field import Field, Range, Sections

_COUNT = Range(least=1)
_unset = functools.partial(Field, older=None)
_TEXT = _unset(str | None)
KEYS = {"image_key": _TEXT, "text_keys": Field(tuple | list, older=())}

_EVALUATION = {
  "kind": Field(str),
  "data": Field(str, rule=sources.mistake),
  "path": Field(str | None),
  "split": Field(str),
  "every": Field(int, within=_COUNT),
  "batch_size": Field(int, within=_COUNT),
  **KEYS,
}
_LABELS = {"label_key": _TEXT, "classes_file": _TEXT, "answers_file": _TEXT}
_CAPTIONS = {
  "captions_file": _unset(str | None),
  "max_captions": _unset(int | None, within=_COUNT),
  "language": _unset(str | None),
}
_WRITTEN = {
  "beams": Field(int, within=_COUNT),
  "max_length": _unset(int | None, within=_COUNT),
}
_PATCHES = {
  "patches": Field(str, words.PATCHES),
  "layer": Field(int),
  "size": _unset(int | None, within=_COUNT),
  "stride": _unset(int | None, within=_COUNT),
  "baselines": Field(bool),
}
_MASKS = {
  "mask_key": Field(str),
  "classes_file": Field(str | None),
  "ignore": Field(tuple | list),
  **_PATCHES,
}
_LEARNT = {"train_split": Field(str), **_MASKS}
# Sections by name: the fields of each kind. A new kind is one line here.
EVALUATIONS = Sections(
  _EVALUATION,
  {
    "classification": {
      "templates": Field(tuple | list),
      "templates_file": _unset(str | None),
      "canonicalize": Field(bool, older=False),
      **_LABELS,
    },
    "retrieval": _CAPTIONS,
    "fewshot": {
      "train_split": Field(str),
      "shots": Field(tuple | list, each=Field(int, within=_COUNT)),
      "seeds": Field(int, within=_COUNT),
      "l2": Field(float | int, within=Range(above=0)),
      **_LABELS,
    },
    "linear_probe": {
      "train_split": Field(str),
      "penalties": Field(
        tuple | list, each=Field(float | int, within=Range(least=1e-12))
      ),
      **_LABELS,
    },
    "calibration": {
      "prior": Field(float | int | None, within=Range(above=0, below=1)),
      **_CAPTIONS,
    },
    "loss_health": {
      "loss_batch_size": Field(int, within=Range(least=2)),
      **_CAPTIONS,
    },
    "caption": {**_WRITTEN, **_CAPTIONS},
    "grounding": {
      "box_key": Field(str),
      "box_text_key": Field(str),
      "box_format": Field(str, words.BOX_FORMATS),
      "max_boxes": _unset(int | None, within=_COUNT),
      **_WRITTEN,
    },
    "segmentation": {
      "templates": Field(tuple | list),
      "templates_file": _unset(str | None),
      "background": Field(str | None),
      "threshold": Field(float | int, within=Range(above=0, below=1)),
      "pool_mlp": Field(bool),
      "centered": Field(bool),
      **_MASKS,
      "patches": Field(str | None, words.PATCHES),
    },
    "segmentation_probe": {
      "shrinkage": Field(float | int, within=Range(above=0)),
      **_LEARNT,
    },
    "patch_retrieval": {
      "memory": Field(int, within=_COUNT),
      "neighbours": Field(int, within=_COUNT),
      **_LEARNT,
    },
    "correspondence": {
      "min_area": Field(float | int, within=Range(above=0, most=1)),
      **_PATCHES,
    },
  },
  resumes=True,
)
