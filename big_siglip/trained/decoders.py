"""The decoder of a run that was trained with a captioning term."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from big_siglip import progress, sharding
from big_siglip.checkpoint import restore_params
from big_siglip.errors import UserError
from big_siglip.models import restack
from big_siglip.models.decoder import Decoder
from big_siglip.objectives import captioning
from big_siglip.schema.sizes import resolve_image
from big_siglip.trained import saved

# Top names of parameters that are no term's.
_MODEL = ("image", "text", "logit_scale", "logit_bias", "lora")


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
  """A decoder with its parameters.

  Attributes:
    decoder: computes in float32.
    spec: its section of `config.terms`.
    params: with stacked blocks, as `decoder` has them.
  """

  decoder: Decoder
  spec: Mapping[str, Any]
  params: Any


def load(path: str, mesh: Mesh) -> Trained:
  """Returns the decoder of a run.

  Args:
    path: the run's folder, or one of its checkpoints.
    mesh: where the parameters are laid out.

  Raises:
    UserError: it has none, or it is damaged.
  """
  lacks = UserError(
    f"{path}: has no decoder: it is no run with a term of "
    "kind='captioning' in config.terms"
  )
  if not saved.is_run(path):
    raise lacks
  run, checkpoint = saved.find(path)
  config = saved.load_config(run)
  terms = config.get("terms", {})
  for name, spec in terms.items():
    if spec.kind == "captioning":
      with progress.waiting("reading the decoder"):
        return _read(checkpoint, config, mesh, name, spec)
  raise lacks


def _read(checkpoint, config: ConfigDict, mesh, name: str, spec) -> Trained:
  saved_as = captioning.make_decoder(spec, config.model)
  width = resolve_image(config.model.image).width
  abstract = jax.eval_shape(
    saved_as.init,
    jax.random.key(0),
    np.zeros((1, 1, saved_as.length), np.int32),
    np.zeros((1, 1, width), np.float32),
  )["params"]
  tree = sharding.placed({name: abstract}, mesh)
  beside = {*_MODEL, *config.terms.keys()} - {name}
  params = restore_params(checkpoint, tree, beside=beside)
  model = ConfigDict(config.model).copy_and_resolve_references()
  model.dtype, model.scan, model.remat = "float32", True, "none"
  model.attention = "xla"
  decoder = captioning.make_decoder(spec, model)
  return Trained(decoder, spec, restack(params, True)[name])
