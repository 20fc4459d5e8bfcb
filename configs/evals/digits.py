"""Every kind of evaluation, on scanned digits: a tour that takes a minute.

python tools/evaluate.py --checkpoint=runs/digits --output=runs/evaluated \
  --evals=configs/evals/digits.py
"""

from ml_collections import config_dict, ConfigDict


def _section(kind: str, **own) -> ConfigDict:
  section = {
    "kind": kind,
    "data": "digits",
    "path": config_dict.placeholder(str),
    "split": "test",
    "every": 1,  # steps, where a config uses it in training.
    "batch_size": 90,  # Rows a device embeds at once.
  }
  return ConfigDict({**section, **own})


# Functions, since a placeholder that two sections share is one field.
def _labels() -> dict:
  return {
    "label_key": config_dict.placeholder(str),
    "classes_file": config_dict.placeholder(str),
    "answers_file": config_dict.placeholder(str),
  }


def _captions() -> dict:
  return {
    "captions_file": config_dict.placeholder(str),
    "max_captions": config_dict.placeholder(int),
    "language": config_dict.placeholder(str),
  }


def get_config() -> ConfigDict:
  """Returns the evaluations."""
  c = ConfigDict()
  c.zeroshot = _section(
    "classification",
    templates=("a photo of the digit {}.", "a handwritten {}."),
    templates_file=config_dict.placeholder(str),
    canonicalize=False,
    **_labels(),
  )
  c.retrieval = _section("retrieval", **_captions())
  c.fewshot = _section(
    "fewshot",
    train_split="train",
    shots=(1, 5, 10, 25),
    seeds=3,
    l2=2.0**10,  # As big_vision.
    **_labels(),
  )
  c.linear = _section(
    "linear_probe",
    train_split="train",
    penalties=(1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    **_labels(),
  )
  c.calibration = _section(
    "calibration",
    prior=config_dict.placeholder(float),  # None: that of the data.
    **_captions(),
  )
  c.balanced = _section("calibration", prior=0.5, **_captions())
  c.health = _section("loss_health", loss_batch_size=128, **_captions())
  return c
