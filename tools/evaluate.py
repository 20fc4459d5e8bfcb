"""Evaluates a checkpoint as its run did, or on other data.

python tools/evaluate.py --checkpoint=runs/digits
python tools/evaluate.py --checkpoint=runs/digits/checkpoints/400 --json \
  --config=configs/digits.py --config.evals.test.split=train
"""

import json

from absl import app, flags, logging
from ml_collections import ConfigDict

from big_siglip.command_line import parse_optional_config
from big_siglip.errors import exit_on_error

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "A run's folder, or RUN/checkpoints/STEP."
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


def parse(argv: list[str]) -> ConfigDict | None:
  """Returns the config that says what to evaluate, None for the run's own."""
  with exit_on_error():
    return parse_optional_config(argv)


def main(config: ConfigDict | None) -> None:
  """Prints the metrics of every evaluator."""
  logging.set_verbosity(logging.WARNING)
  from big_siglip import build, platforms, saved, sharding  # Loads JAX.
  from big_siglip.errors import UserError

  with exit_on_error():
    platforms.prepare()
    if not _CHECKPOINT.value:
      raise UserError("--checkpoint=RUN must be given")
    run, checkpoint = saved.find(_CHECKPOINT.value)
    trained = saved.load_config(run)
    if config is not None:
      trained.evals = config.evals
    # How many devices trained it, and with which batch, does not matter here.
    mesh = sharding.make_mesh()
    evaluators = build.evaluators(trained, mesh)
    if not evaluators:
      raise UserError("config.evals is empty: name evaluators with --config")
    params = saved.load_params(checkpoint, trained, mesh)
    results = {
      f"evals/{name}/{metric}": value
      for name, evaluator in evaluators.items()
      for metric, value in evaluator(params).items()
    }
  if _JSON.value:
    print(json.dumps({"step": int(checkpoint.name), **results}))
    return
  print(f"{checkpoint}")
  for name, value in results.items():
    print(f"  {name:40} {value:.4f}")


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
