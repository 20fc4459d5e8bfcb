"""Writes a trained model in another project's format.

python tools/export_weights.py --checkpoint=runs/photos --format=huggingface \
  --output=exported

`huggingface` makes a folder that transformers' AutoModel and AutoProcessor
load, `big_vision` a .npz and `open_clip` a .safetensors file. Importing it
again gives the same bits. `stablehlo` makes a folder with each tower as a
program of its own, for serving (big_siglip.trained.serving.load).
"""

import pathlib

from absl import app, flags, logging

from big_siglip.command_line import parse_arguments
from big_siglip.errors import exit_on_error, UserError

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "A run's or model's folder, RUN/checkpoints/STEP, or published weights.",
)
_FORMATS = ["huggingface", "big_vision", "open_clip", "stablehlo"]
_ENDINGS = {"big_vision": ".npz", "open_clip": ".safetensors"}  # Of a file.
_FORMAT = flags.DEFINE_enum("format", "huggingface", _FORMATS, "Whose.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder, or file, to make.")


def main(argv: list[str]) -> None:
  """Exports, and prints where to."""
  logging.set_verbosity(logging.WARNING)
  with exit_on_error():
    if argv[1:]:
      raise UserError(f"{argv[1]!r}: belongs to no flag")
    for name in ("checkpoint", "output"):
      if not flags.FLAGS[name].value:
        raise UserError(f"--{name} must be given")
    output = pathlib.Path(_OUTPUT.value).expanduser()
    ending = _ENDINGS.get(_FORMAT.value, output.suffix)
    if output.suffix != ending:
      raise UserError(f"--output={output}: must end in {ending}")
    if output.exists():
      raise UserError(f"--output={output}: exists already")
    from big_siglip import platforms, sharding
    from big_siglip.models import merged
    from big_siglip.schema.sizes import has_text_tower
    from big_siglip.trained import saved, serving
    from big_siglip.weights import export

    platforms.prepare()
    _, config, load_params = saved.open_model(_CHECKPOINT.value)
    if not has_text_tower(config.model):
      raise UserError(
        f"--checkpoint={_CHECKPOINT.value}: is an image tower alone, and "
        "exports are of whole models: train a text tower to it (configs/lit.py)"
      )
    params = load_params(sharding.make_mesh())
    params = merged(params, config.model)
    formats = {**export.FORMATS, "stablehlo": serving.save}
    formats[_FORMAT.value](output, params, config)
  print(output)


if __name__ == "__main__":
  app.run(main, flags_parser=parse_arguments)
