"""What a config leaves to the weights that it starts from: sizes and the like.

A field of `schema` that is `of_weights` may be None: then it is taken from
`config.init.path`, here, before anything is built. What a config or the command
line sets wins.
"""

from typing import Any

from ml_collections import ConfigDict

from big_siglip.config import find_problems
from big_siglip.data.text import make_tokenizer
from big_siglip.errors import naming, raise_problems, UserError
from big_siglip.run import workdir
from big_siglip.schema import sizes
from big_siglip.schema.field import Field
from big_siglip.schema.fields import FIELDS, unset_fields
from big_siglip.trained import saved
from big_siglip.trained.fitting import check_towers
from big_siglip.weights import open_weights


def fill(
  config: ConfigDict, folder: str | None = None
) -> tuple[ConfigDict, list[str]]:
  """Returns the whole config, and a line for each thing that was taken.

  A run that was started before goes by its own config.json: the weights may be
  gone since. Parameters are not read.

  Args:
    config: without the mistakes that `find_problems` finds.
    folder: of the run, which may not be there yet.

  Raises:
    UserError: no weights lie there, they do not have all that is missing, or
      the whole config is wrong.
  """
  unset = unset_fields(config)
  if not unset:
    return config, []
  started = _started(folder) if folder else None
  source = started or _open(config, unset)
  if not started:
    check_towers(config, source.model)
  whole = config.copy_and_resolve_references()
  with whole.unlocked():
    _fill_model(whole.model, source.model)
    for name in _of_weights(FIELDS["data"]):
      if whole.data[name] is None:
        whole.data[name] = source.data.get(name)
    if not sizes.has_text_tower(source.model):
      _fill_text(whole)
  silent = f"must be set: {config.init.path} does not say (init.path)"
  raise_problems([f"config.{f}=None: {silent}" for f in unset_fields(whole)])
  raise_problems(find_problems(whole))
  return whole, [] if started else _describe(config, whole, source)


def _started(folder: str) -> ConfigDict | None:
  """Returns the config of the run in a folder, or None before its first save.

  Until then it needs the weights, and a mistake about these can be mended.
  """
  path = workdir.absolute(folder)
  return saved.load_config(path) if workdir.saved_steps(path) else None


def _open(config: ConfigDict, unset: list[str]) -> ConfigDict:
  """Returns the config of the weights of `config.init.path`."""
  path, tokenizer = config.init.path, config.data.tokenizer
  needs_data = any(field.startswith("data.") for field in unset)
  names = {
    "--tokenizer": "config.data.tokenizer",
    "--checkpoint": "config.init.path",
  }
  try:
    with naming(names):
      try:
        return saved.open_model(path, tokenizer=needs_data)[1]
      except UserError:  # Perhaps no tokenizer lies beside them.
        if tokenizer is None or saved.is_run(path):
          raise
        return saved.published_config(open_weights(path), tokenizer)
  except UserError as error:
    if not str(error).startswith(path):
      raise
    raise UserError(f"config.init.path={error}") from error


def _of_weights(fields: Any) -> list[str]:
  return [
    name
    for name, field in fields.items()
    if isinstance(field, Field) and field.of_weights
  ]


def _fill_model(model: Any, source: Any) -> None:
  takes_size = []
  for tower in ("image", "text"):
    own, theirs = model[tower], source.get(tower)
    if theirs is None:  # An image tower alone.
      continue
    names = _of_weights(FIELDS["model"][tower])
    if own.size is None:  # A name, and the numbers that override it.
      takes_size.append(tower)
      names = list(FIELDS["model"][tower])
    for name in names:
      if own[name] is None:
        own[name] = theirs[name]
  if takes_size and model.embed_dim is None:
    model.embed_dim = source.embed_dim
    if source.embed_dim is None and "image" not in takes_size:
      model.embed_dim = sizes.resolve_image(source.image).width


def _fill_text(config: ConfigDict) -> None:
  """Gives a text tower SigLIP's own rules, where the weights have none.

  The tokenizer has to be named; it says how many pieces there are, and which
  ends a text.

  Raises:
    UserError: it is not.
  """
  text, data = config.model.text, config.data
  if data.tokenizer is None:
    raise UserError(
      "config.data.tokenizer=None: must be set to bytes, a SentencePiece model "
      f"or a tokenizer.json: {config.init.path} (init.path) has no text tower"
    )
  made = make_tokenizer(data.tokenizer, pad_id=0)
  given = [
    (text, "length", 64),
    (text, "pooling", "last"),
    (text, "head", True),
    (data, "lowercase", True),
    (data, "clean", "none"),
    (text, "vocab_size", made.vocab_size),
    (data, "pad_id", made.eos_id),
  ]
  for section, name, value in given:
    if section[name] is None:
      section[name] = value


def _describe(
  config: ConfigDict, whole: ConfigDict, source: ConfigDict
) -> list[str]:
  """Returns what was taken, in a line for each tower and the preprocessing."""
  lines = []
  path = config.init.path
  for name in ("model.image", "model.text", "data"):
    before, now, fields = config, whole, FIELDS
    for part in name.split("."):
      before, now, fields = before[part], now[part], fields[part]
    there = source
    for part in name.split("."):
      there = there.get(part, {})
    taken = {
      field: now[field]
      for field in fields
      if before[field] is None and now[field] is not None
    }
    for own, origin in (
      (False, f"of {path} (init.path)"),
      (True, f"as SigLIP has it, since {path} has no text tower"),
    ):
      shown = ", ".join(
        f"{field}={value!r}"
        for field, value in taken.items()
        if (there.get(field) is None) == own
      )
      if shown:
        lines.append(f"{name}: {shown}: {origin}")
  return lines
