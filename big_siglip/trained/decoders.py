"""The decoder of a run that was trained with a captioning term."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

from etils import epath
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from big_siglip import progress, sharding
from big_siglip.checkpoint import restore_params
from big_siglip.errors import UserError
from big_siglip.evaluators import written
from big_siglip.evaluators.scribe import find_decoder
from big_siglip.models import restack
from big_siglip.objectives import captioning
from big_siglip.schema.sizes import resolve_image
from big_siglip.trained import kept_terms, saved

# Top names of parameters that are no term's.
_MODEL = ("image", "text", "logit_scale", "logit_bias", "lora")


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
  """A decoder's parameters.

  Attributes:
    name: of its section of `config.terms`.
    spec: the section.
    params: with stacked blocks.
  """

  name: str
  spec: Mapping[str, Any]
  params: Any


def load(path: str, mesh: Mesh) -> Trained:
  """Returns the decoder of a run, or one that an export has kept.

  Args:
    path: as `saved.load` takes it.
    mesh: where the parameters are laid out.

  Raises:
    UserError: it has none, or it is damaged.
  """
  found, config, _ = saved.open_model(path)
  if decoder := load_of(found, config, mesh):
    return decoder
  raise UserError(
    f"{path}: has no decoder: it is no run with a term of "
    "kind='captioning' in config.terms, nor an export that keeps one (--keep)"
  )


def load_of(
  checkpoint: epath.Path, config: ConfigDict, mesh: Mesh
) -> Trained | None:
  """Returns the decoder of a checkpoint; None where its run has none.

  Args:
    checkpoint: its folder, or an export; see `saved.open_model`.
    config: of it.
    mesh: where the parameters are laid out.
  """
  found = find_decoder(config)
  if found is None:
    return None
  with progress.waiting("reading the decoder"):
    return _read(checkpoint, config, mesh, *found)


def joined(
  params: Any, checkpoint: epath.Path, config: ConfigDict, mesh: Mesh
) -> Any:
  """Returns parameters with those of the decoder, if an evaluation needs it.

  Args:
    params: of the model.
    checkpoint: the folder that they were read from.
    config: of the run, with the evaluations.
    mesh: where they are laid out.
  """
  if not any(spec.kind in written.KINDS for spec in config.evals.values()):
    return params
  found = load_of(checkpoint, config, mesh)
  return params if found is None else {**params, found.name: found.params}


def _read(checkpoint, config: ConfigDict, mesh, name: str, spec) -> Trained:
  is_run = (checkpoint / "params").is_dir()
  model = ConfigDict(config.model).copy_and_resolve_references()
  model.scan = model.scan or not is_run  # Of what is kept blocks are stacked.
  saved_as = captioning.make_decoder(spec, model)
  width = resolve_image(model.image).width
  abstract = jax.eval_shape(
    saved_as.init,
    jax.random.key(0),
    np.zeros((1, 1, saved_as.length), np.int32),
    np.zeros((1, 1, width), np.float32),
  )["params"]
  tree = sharding.placed({name: abstract}, mesh)
  if is_run:
    beside = {*_MODEL, *config.terms.keys()} - {name}
    params = restore_params(checkpoint, tree, beside=beside)
  else:
    params = kept_terms.restore(pathlib.Path(checkpoint), tree)
  return Trained(name, spec, restack(params, True)[name])
