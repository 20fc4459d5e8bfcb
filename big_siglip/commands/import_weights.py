"""Makes a model folder of published SigLIP or SigLIP 2 weights.

big-siglip import --weights=google/siglip-so400m-patch14-384 \
  --output=models/so400m
big-siglip import --weights=webli_en_b16_224.npz \
  --tokenizer=c4_en/sentencepiece.model --output=models/b16

Reads safetensors of transformers and open_clip (a file, a folder, or the id of
a repository on the Hugging Face hub) and .npz of big_vision. The folder serves
wherever a run's folder does: big-siglip evaluate, classify, config.init,
big_siglip.load. --max_patches=N makes a NaFlex model of one of squares, with
the same parameters: it sees images in their own shape (docs/naflex.md), and has
to be trained for it. --max_patches=0 makes one of squares of a NaFlex model.
"""

import json
import pathlib

from absl import flags, logging
from ml_collections import ConfigDict

from big_siglip import progress
from big_siglip.commands import sight
from big_siglip.errors import exit_on_error, naming, UserError

flags.adopt_module_key_flags(sight)
_WEIGHTS = flags.DEFINE_string(
  "weights", None, "A file, a folder, or the id of a repository."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to make.")
_TOKENIZER = flags.DEFINE_string(
  "tokenizer",
  None,
  "SentencePiece model or tokenizer.json; default: the one beside the weights.",
)
_BASE = flags.DEFINE_string(
  "base", None, "Of an adapter (LoRA): its weights; default: those it names."
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


def main(argv: list[str]) -> None:
  """Imports, and prints what was found."""
  logging.set_verbosity(logging.WARNING)
  with exit_on_error():
    if argv[1:]:
      raise UserError(f"{argv[1]!r}: belongs to no flag")
    for name in ("weights", "output"):
      if not flags.FLAGS[name].value:
        raise UserError(f"--{name} must be given")
    with progress.loading():
      from etils import epath
      import jax

      from big_siglip import platforms, sharding
      from big_siglip.data.preprocessing import Preprocessing
      from big_siglip.trained import kept_terms, naflex, saved
      from big_siglip.weights import open_weights
      from big_siglip.weights.preprocessing import find_preprocessing

      platforms.prepare()
    with progress.waiting("opening the weights"):
      weights = open_weights(_WEIGHTS.value, _BASE.value)
      preprocessing = find_preprocessing(weights, _TOKENIZER.value)
    if kept := kept_terms.sections(pathlib.Path(weights.reader.path)):
      progress.say(
        f"note: {', '.join(kept)}, kept beside the weights, are not imported: "
        f"what needs them takes --checkpoint={_WEIGHTS.value}"
      )
    data = preprocessing.data_fields()
    config = ConfigDict({"model": weights.model, "data": data})
    if sight.MAX_PATCHES.value is not None:
      with naming({"max_patches": "--max_patches"}):
        naflex.convert(config, sight.MAX_PATCHES.value, _WEIGHTS.value)
      preprocessing = Preprocessing.of(config)
    params = saved.load_weights(weights, config, sharding.make_mesh())
    output = epath.Path(_OUTPUT.value)
    if "://" not in str(_OUTPUT.value):
      output = output.expanduser().resolve()
    with progress.waiting("writing the model"):
      saved.save_model(output, params, config.model, preprocessing)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  answer = {
    "format": weights.format,
    "parameters": count,
    "image": _describe_image(config.model.image),
    "text": _describe_text(weights.model),
    "mean": preprocessing.mean,
    "std": preprocessing.std,
    **preprocessing.data_fields(),
    "output": str(output),
  }
  if _JSON.value:
    print(json.dumps(answer))
    return
  for name, value in answer.items():
    print(
      f"{name:13} {value:,}" if name == "parameters" else f"{name:13} {value}"
    )


def _describe_image(image) -> str:
  if image.max_patches is None:
    return f"{image.size} at {image.image_size}"
  return f"{image.size}, up to {image.max_patches} patches (NaFlex)"


def _describe_text(model) -> str | None:
  text = model.get("text")
  return text and f"{text.size}, {text.length} tokens"
