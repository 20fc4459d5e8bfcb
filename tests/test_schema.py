"""The table of fields, and configs of runs that are older than some of them."""

import json
import math

from ml_collections import ConfigDict
import pytest
import runs

from big_siglip.command_line import load_config
from big_siglip.config import changed_fields, find_problems, flatten
from big_siglip.errors import UserError
from big_siglip.run import workdir
from big_siglip.schema import fields
from big_siglip.schema.field import Field, Sections
from big_siglip.trained import saved

# What the first runs' config.json does not have.
NEWER = (
  "data.captions",
  "data.clean",
  "data.decoder",
  "data.deduplicate",
  "data.fields",
  "data.filters",
  "data.image_key",
  "data.label_key",
  "data.max_skipped",
  "data.mixture",
  "data.retry_seconds",
  "data.stall_seconds",
  "data.templates",
  "data.text_keys",
  "ema",
  "evals.test.answers_file",
  "evals.test.canonicalize",
  "evals.test.captions_file",
  "evals.test.classes_file",
  "evals.test.label_key",
  "evals.test.language",
  "evals.test.max_captions",
  "evals.test.templates_file",
  "init",
  "logging",
  "loss.dtype",
  "loss.duplicates",
  "loss.same",
  "mesh.slices",
  "microbatch",
  "model.attention",
  "model.keep_blocks",
  "model.lora",
  "model.slice_tokens",
  "terms",
)


def _old(config):
  """Returns the config as a run of the first version would have written it."""
  old = workdir.as_json(config)
  for field in NEWER:
    *sections, name = field.split(".")
    section = old
    for part in sections:
      section = section[part]
    del section[name]
  return old


def test_the_config_of_the_first_runs_is_read_as_todays():
  config = runs.config(logging__pictures=True)
  whole = fields.complete_config(_old(config))
  captions = ("captions_file", "max_captions", "language")
  today = workdir.as_json(config)
  for name in captions:  # A classification has no need of them.
    del today["evals"]["test"][name]
  assert whole == today
  assert not find_problems(ConfigDict(whole))


def test_the_first_runs_are_resumed(tmp_path):
  config = runs.config()
  (tmp_path / "config.json").write_text(json.dumps(_old(config)))
  folder = workdir.claim(str(tmp_path), config)
  assert saved.load_config(folder).model.lora.rank == 0
  (folder / "checkpoints" / "5").mkdir(parents=True)  # It has trained.
  other = runs.config(data__clean="html")
  with pytest.raises(UserError, match="config.data.clean: 'none' -> 'html'"):
    workdir.claim(str(tmp_path), other)


def test_words_of_other_times_are_read_as_todays():
  old = workdir.as_json(runs.config())
  old["model"]["attention"] = "jax"
  assert fields.complete_config(old)["model"]["attention"] == "xla"


@pytest.mark.parametrize("value", [None, 3, [], "none", {"image": 3}])
@pytest.mark.parametrize("section", ["model", "data", "evals", "init"])
def test_a_damaged_section_stays_as_it_is(section, value):
  old = workdir.as_json(runs.config()) | {section: value}
  whole = fields.complete_config(old)
  assert find_problems(ConfigDict(whole))


def test_a_models_folder_gets_no_fields_of_training():
  model = workdir.as_json(runs.config())["model"]
  del model["lora"]
  data = {"tokenizer": "bytes", "lowercase": True, "resize": "bilinear"}
  whole = fields.complete_config({"model": model, "data": data})
  assert whole["model"]["lora"]["rank"] == 0
  older = {"clean": "none", "crop": "none", "crop_fraction": 1.0}
  assert whole["data"] == {**data, **older, "fill": [0, 0, 0]}
  assert set(whole) == {"model", "data"}


def test_what_resuming_may_change():
  config = workdir.as_json(runs.config())
  free = {field for field, _ in flatten(config) if fields.may_change(field)}
  assert free >= {"microbatch", "mesh.fsdp", "init.state", "model.remat"}
  assert free >= {"evals.test.every", "data.num_workers", "wandb"}
  assert not free & {"seed", "ema.decay", "data.fields", "model.image.size"}
  assert not fields.may_change("data") and not fields.may_change("no.such")
  assert changed_fields(config, {**config, "no": 3}) == [
    "config.no: '(no field)' -> 3"
  ]


def _leaves(rules):
  for rule in rules.values():
    if isinstance(rule, Field):
      yield rule
    elif isinstance(rule, Sections):
      yield from _leaves(rule.common)
      for own in (rule.kinds or {}).values():
        yield from _leaves(own)
    else:
      yield from _leaves(rule)


def test_older_values_are_legal():
  newer = [field for field in _leaves(fields.FIELDS) if field.is_newer]
  assert len(newer) > 30
  assert not [field for field in newer if field.mistake(field.older)]
  for field in _leaves(fields.FIELDS):
    assert set(field.was.values()) <= set(field.words)


@pytest.mark.parametrize(
  ("field", "value", "said"),
  [
    ("optimizer.b1", 1.0, "must lie in [0, 1)"),
    ("optimizer.b2", math.nan, "must lie in [0, 1)"),
    ("optimizer.learning_rate", math.inf, "must be above 0, and finite"),
    ("optimizer.name", "sgd", "must be one of adamw, adafactor, lion"),
    ("data.crop_min_area", 0.0, "must lie in (0, 1]"),
    ("ema.decay", 1.0, "must lie in (0, 1)"),
    ("init.state", "half", "must be one of params, all"),
    ("model.attention", "jax", "must be one of auto, xla, heads_first"),
    ("checkpoint.keep", 1, "must be at least 2"),
    ("model.text.size", None, "must be set"),
    ("data.fields", "boxes", "must be tuple or list"),
  ],
)
def test_a_value_that_is_not_allowed_is_named(field, value, said):
  config = ConfigDict(workdir.as_json(runs.config()))
  *sections, name = field.split(".")
  section = config
  for part in sections:
    section = section[part]
  with section.ignore_type():
    section[name] = value
  (problem,) = find_problems(config)
  assert problem.startswith(f"config.{field}={value!r}: {said}")


def test_a_term_needs_a_kind():
  config = ConfigDict(workdir.as_json(runs.config()))
  config.terms.mine = {"weight": 1.0}
  (problem,) = find_problems(config)
  assert "config.terms.mine.kind=None: must be one of" in problem


def test_a_field_without_its_weights_must_be_set():
  config = load_config(str(runs.ROOT / "configs" / "finetune.py"))
  assert config.model.image.size is None
  with config.init.ignore_type():
    config.init.path = None
  said = find_problems(config)
  assert "config.model.image.size=None: must be set, or" in said[0]
  assert len(said) == len(fields.unset_fields(config)) == 20


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("project", "a/b"),
    ("project", ""),
    ("entity", " "),
    ("name", "x" * 129),
    ("tags", ("good", "")),
    ("tags", ("good", 3)),
  ],
)
def test_a_name_that_wandb_does_not_take_is_told_at_once(field, value):
  config = runs.config()
  config.logging[field] = value
  (problem,) = find_problems(config)
  assert problem.startswith(f"config.logging.{field}={value!r}: must ")


def test_logging_may_change_on_resume_and_is_new():
  config = workdir.as_json(runs.config())
  assert all(fields.may_change(f"logging.{name}") for name in config["logging"])
  whole = fields.complete_config(_old(runs.config()))
  assert whole["logging"]["project"] == "big_siglip"
