"""Writes a trained model in another project's format.

big-siglip export --checkpoint=runs/photos --format=huggingface \
  --output=exported

`huggingface` makes a folder that transformers' AutoModel and AutoProcessor
load, `open_clip` one for its "local-dir:" (or weights alone, where --output
ends in .safetensors), `big_vision` a .npz. Importing these again gives the same
bits. `onnx` makes a folder with each tower as a graph for onnxruntime,
`stablehlo` one with programs for JAX (big_siglip.trained.serving.load).
--classifier=FOLDER adds classifier.onnx, from pixels to the probabilities of
the labels of a classifier of big-siglip probe (classifier.json names them).
--weights=teacher takes the teacher of a run with self-distillation.
Terms of the loss are left out; --keep=NAME writes those of config.terms beside
the model, so that big-siglip caption finds a decoder there.
What big-siglip calibrate left is exported as the model's scale and bias.
--push=ORG/NAME uploads a folder to the Hugging Face hub, with its model card.
--max_patches=N exports a NaFlex model, 0 one of squares, whichever it was: the
parameters are the same (docs/naflex.md).
"""

import pathlib

from absl import flags, logging

from big_siglip import progress
from big_siglip.commands import sight
from big_siglip.errors import exit_on_error, naming, UserError

flags.adopt_module_key_flags(sight)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "A run's or model's folder, RUN/checkpoints/STEP, or published weights.",
)
_WEIGHTS = flags.DEFINE_enum(
  "weights",
  "trained",
  ["trained", "teacher"],
  "Whose: the teacher's, of a run with self-distillation.",
)
_KEEP = flags.DEFINE_list(
  "keep", [], "Of config.terms, whose parameters are kept beside the model."
)
_FORMATS = ["huggingface", "big_vision", "open_clip", "onnx", "stablehlo"]
_OF_SQUARES = ("onnx", "stablehlo")
_CARDS = ("huggingface", "open_clip", "onnx")  # Those that the hub knows.
_FILES = (".npz", ".safetensors", ".onnx", ".bin", ".pt", ".pth")
_FORMAT = flags.DEFINE_enum("format", "huggingface", _FORMATS, "Whose.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder, or file, to make.")
_PUSH = flags.DEFINE_string(
  "push", None, "Repository of the hub to upload to, private if it is new."
)
_CLASSIFIER = flags.DEFINE_string(
  "classifier", None, "A folder of big-siglip probe, for --format=onnx."
)
_CALIBRATION = flags.DEFINE_string(
  "calibration",
  "kept",
  "none: the trained scale and bias; or a file of big-siglip calibrate.",
)
_PUBLIC = flags.DEFINE_bool("public", False, "Let everyone see a new one.")


def main(argv: list[str]) -> None:
  """Exports, and prints where to."""
  logging.set_verbosity(logging.WARNING)
  with exit_on_error():
    output = _check_flags(argv[1:])
    with progress.loading():
      from big_siglip import platforms, sharding
      from big_siglip.report import runs
      from big_siglip.trained import kept_terms, naflex, saved, teachers
      from big_siglip.weights import card, push

      platforms.prepare()
    style, name = _FORMAT.value, _PUSH.value
    found, config, load = saved.open_model(_CHECKPOINT.value)
    load_params = teachers.choose(_WEIGHTS.value, found, config, load)
    if sight.MAX_PATCHES.value is not None:
      with naming({"max_patches": "--max_patches"}):
        naflex.convert(config, sight.MAX_PATCHES.value, _CHECKPOINT.value)
    _check_model(config)
    kept_terms.check(_KEEP.value, found, config)
    if left := kept_terms.told_left(config, _KEEP.value):
      progress.say(f"note: {left}")
    address = push.open_repository(name, public=_PUBLIC.value) if name else ""
    mesh = sharding.make_mesh()
    params = load_params(mesh)
    head = _read_classifier(params, config)
    params = _finish(params, config)
    with progress.waiting(f"writing {output}"):
      _write(output, params, config, head)
      if _KEEP.value:
        kept_terms.save(output, _KEEP.value, found, config, mesh)
    if style in _CARDS and output.is_dir():
      card.save(output, style, config, runs.evaluations_of(found), name)
    if name:
      with progress.waiting(f"uploading to {name}"):
        push.upload(name, output)
  print(output)
  if address:
    print(address)


def _check_model(config) -> None:
  """Raises a UserError where the format has no place for such a model."""
  from big_siglip.schema.sizes import has_text_tower

  path = _CHECKPOINT.value
  if _FORMAT.value in _OF_SQUARES and config.model.image.max_patches:
    raise UserError(
      f"--format={_FORMAT.value}: has images of one size, and {path} keeps "
      "their shape (NaFlex); --max_patches=0 makes it one of squares"
    )
  if not has_text_tower(config.model):
    raise UserError(
      f"--checkpoint={path}: is an image tower alone, and exports are of whole "
      "models: train a text tower to it (configs/lit.py)"
    )


def _write(output: pathlib.Path, params, config, head) -> None:
  from big_siglip.trained import serving
  from big_siglip.weights import export

  style = _FORMAT.value
  if style == "open_clip":
    export.to_open_clip(output, params, config, _PUSH.value)
  elif style == "onnx":
    export.to_onnx(output, params, config, head)
  elif style == "stablehlo":
    serving.save(output, params, config)
  else:
    export.FORMATS[style](output, params, config)


def _read_classifier(params, config):
  """Returns the classifier that is exported with the model, or None."""
  from big_siglip.trained import classifier
  from big_siglip.weights import export

  if _CLASSIFIER.value is None:
    return None
  path = _CLASSIFIER.value
  head = classifier.read_of(path, params, config, _CHECKPOINT.value)
  return export.Classifier(head.weights, head.bias, head.labels)


def _finish(params, config):
  """Returns the parameters of a plain model, calibrated if it was."""
  from big_siglip import progress
  from big_siglip.models import merged
  from big_siglip.trained import calibrated

  found = calibrated.load(_CHECKPOINT.value, params, _CALIBRATION.value)
  params = merged(params, config.model)
  if found is None:
    return params
  progress.say(f"note: {found}")
  return calibrated.baked(params, found)


def _check_flags(arguments: list[str]) -> pathlib.Path:
  """Returns what is to be made."""
  if arguments:
    raise UserError(f"{arguments[0]!r}: belongs to no flag")
  for name in ("checkpoint", "output"):
    if not flags.FLAGS[name].value:
      raise UserError(f"--{name} must be given")
  output = pathlib.Path(_OUTPUT.value).expanduser()
  endings = {"big_vision": (".npz",), "open_clip": (".safetensors", "")}
  allowed = endings.get(_FORMAT.value, ("",))
  ending = output.suffix if output.suffix in _FILES else ""
  if ending not in allowed:
    must = " or ".join(f"end in {e}" if e else "be a folder" for e in allowed)
    raise UserError(f"--output={output}: must {must}")
  if output.exists():
    raise UserError(f"--output={output}: exists already")
  if _CLASSIFIER.value is not None and _FORMAT.value != "onnx":
    raise UserError(
      f"--classifier: goes with --format=onnx, not with {_FORMAT.value}"
    )
  if _KEEP.value and _FORMAT.value in _OF_SQUARES:
    raise UserError(
      f"--keep: goes with formats that are loaded again, not with "
      f"{_FORMAT.value}"
    )
  if _PUBLIC.value and not _PUSH.value:
    raise UserError("--public says who sees what --push=ORG/NAME uploads")
  if _PUSH.value and ending:
    raise UserError(f"--output={output}: --push uploads a folder")
  return output
