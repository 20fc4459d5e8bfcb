"""A trained model, found again: a folder or file -> config and parameters."""

from collections.abc import Callable
import hashlib
import json
import pathlib
from typing import Any

from absl import logging
from etils import epath
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from big_siglip import build, progress, sharding
from big_siglip.checkpoint import restore_params, save_params
from big_siglip.config import has_image_tower
from big_siglip.data.preprocessing import Preprocessing
from big_siglip.errors import naming, UserError
from big_siglip.models import make_model, merged, restack
from big_siglip.run import workdir
from big_siglip.trained import kept_terms, places
from big_siglip.weights import open_weights, read_params, Weights
from big_siglip.weights.matching import check_scale
from big_siglip.weights.preprocessing import (
  find_image_preprocessing,
  find_preprocessing,
)


def find(path: str) -> tuple[epath.Path, epath.Path]:
  """Returns the run's folder and that of one of its checkpoints.

  Args:
    path: the run's folder, or its `checkpoints` (the newest is taken), or one
      checkpoint, `RUN/checkpoints/STEP`.

  Raises:
    UserError: no run or no checkpoint lies there.
  """
  run, checkpoint = places.find_run(path) or (workdir.absolute(path), None)
  if checkpoint is None:
    steps = workdir.saved_steps(run)
    if not steps:
      said = f"--checkpoint={path}: no run with a checkpoint lies here"
      raise UserError(said)
    checkpoint = run / places.CHECKPOINTS / str(steps[-1])
  if not checkpoint.is_dir():
    raise UserError(f"--checkpoint={path}: no such checkpoint")
  return run, checkpoint


def is_run(path: str) -> bool:
  """Returns whether `find` would look for a run here, not for other weights."""
  return places.find_run(path) is not None


def load(
  path: str, mesh: Mesh, *, tokenizer: bool = True
) -> tuple[ConfigDict, Any]:
  """Returns config (`model` and `data` at least) and parameters of any model.

  Args:
    path: a run's or model's folder, one of its checkpoints, or what
      `weights.open_weights` takes.
    mesh: where the parameters are laid out.
    tokenizer: False: published weights may lie there without; `config.data` is
      about images alone then.

  Raises:
    UserError: there is no model, or none that is whole.
  """
  _, config, load_params_on = open_model(path, tokenizer=tokenizer)
  return config, load_params_on(mesh)


def open_model(
  path: str, *, tokenizer: bool = True
) -> tuple[epath.Path, ConfigDict, Callable[[Mesh], Any]]:
  """Does what `load` does, but for the parameters, which take longer.

  Returns:
    What was found (the checkpoint's folder, or `path` itself), the config, and
    a function that loads the parameters.
  """
  if is_run(path):
    run, checkpoint = find(path)
    config = load_config(run)

    def load_run(mesh: Mesh) -> Any:
      with progress.waiting("reading weights"):
        return load_params(checkpoint, config, mesh)

    return checkpoint, config, load_run
  weights = open_weights(path)
  try:
    config = published_config(weights)
  except UserError:
    if tokenizer:
      raise
    config = _config(weights.model, find_image_preprocessing(weights))
  found = epath.Path(path.partition("://")[2] or path)  # Perhaps the hub's.
  if terms := kept_terms.sections(pathlib.Path(weights.reader.path)):
    found, config.terms = epath.Path(weights.reader.path), terms
  return (
    found,
    config,
    lambda mesh: load_weights(weights, config, mesh),
  )


def load_config(run: epath.Path) -> ConfigDict:
  """Returns a run's config, unlocked, with the tokenizer that lies beside.

  Raises:
    UserError: there is none, or it is damaged.
  """
  config = ConfigDict(workdir.read_config(run))
  names = ("model.image", "model.text", "data")
  if "total_steps" not in config and "text" not in config.get("model", {}):
    names = ("model.image", "data")  # An image tower alone.
  for name in names:
    section = config
    for part in name.split("."):
      section = section.get(part)
      if not isinstance(section, ConfigDict):
        raise UserError(f"{run / 'config.json'}: {name} must be a JSON object")
  kept = workdir.find_tokenizer(run)
  if kept:
    config.data.tokenizer = kept
  return config


def save_model(
  folder: epath.Path, params: Any, model: Any, preprocessing: Preprocessing
) -> None:
  """Writes parameters and preprocessing as a run's folder, at step 0.

  Args:
    folder: must not hold a run yet.
    params: the parameters.
    model: `config.model`.
    preprocessing: of the model.

  Raises:
    UserError: the folder holds a run, or cannot be written.
  """
  if (folder / "config.json").exists():
    raise UserError(f"{folder}: holds a run already; take another folder")
  checkpoint = folder / "checkpoints" / "0"
  config = _config(model, preprocessing)
  try:
    checkpoint.mkdir(parents=True, exist_ok=True)
    workdir.keep_tokenizer(folder, preprocessing.tokenizer)
  except OSError as error:
    raise UserError(f"{folder}: not writable ({error.strerror})") from error
  save_params(checkpoint, params)
  text = json.dumps(workdir.as_json(config), indent=2) + "\n"
  workdir.write_whole(folder / "config.json", text)


def load_params(checkpoint: epath.Path, config: ConfigDict, mesh: Mesh) -> Any:
  """Returns the parameters of a checkpoint, laid out on the mesh.

  Those of a run on embeddings are joined by the image tower that made these,
  of `config.init.path`: it is a whole model again.

  Raises:
    UserError: the checkpoint is not one of this config's model, or its scale
      overflows, or the image tower is not there, or another one.
  """
  model = make_model(config.model)
  abstract = sharding.placed(build.abstract_params(model, config), mesh)
  beside = config.get("terms", {}).keys()
  params = restore_params(checkpoint, abstract, beside=beside)
  if "logit_scale" in params:
    scale = float(jax.device_get(params["logit_scale"]))
    check_scale(scale, f"{checkpoint}: logit_scale")
  if has_image_tower(config):
    return params
  made = workdir.read_embedding(checkpoint.parent.parent)
  whole = build.abstract_params(model, config, whole=True)
  tower = _image_tower(config, made["parameters"], whole["image"], mesh)
  return {**params, "image": tower}


def published_config(
  weights: Weights, tokenizer: str | None = None
) -> ConfigDict:
  """Returns `model` and `data` of published weights.

  Args:
    weights: see `open_weights`.
    tokenizer: see `find_preprocessing`.
  """
  return _config(weights.model, find_preprocessing(weights, tokenizer))


def _config(model: Any, preprocessing: Preprocessing) -> ConfigDict:
  data = preprocessing.data_fields()
  data = {name: value for name, value in data.items() if value is not None}
  model.image.update(preprocessing.image_fields())
  return ConfigDict({"model": model, "data": data, "evals": {}})


def load_weights(weights: Weights, config: ConfigDict, mesh: Mesh) -> Any:
  """Returns our parameters of published weights, laid out on the mesh."""
  abstract = build.abstract_params(make_model(config.model), config, whole=True)
  params = read_params(
    weights.reader,
    weights.rules,
    sharding.placed(abstract, mesh),
    weights.notes,
  )
  for note in weights.notes:
    logging.warning("%s: %s", weights.reader.path, note)
  return params


def fingerprint(params: Any) -> str:
  """Returns a hash of all parameters, which must be whole on each device."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    # One device's copy, because a jax.Array keeps what numpy once saw of it:
    # all parameters again, in host memory.
    digest.update(np.ascontiguousarray(leaf.addressable_data(0)))
  return digest.hexdigest()


def _image_tower(config: ConfigDict, parameters: str, abstract, mesh: Mesh):
  """Returns the image tower of `config.init.path`, if it is the right one."""
  path = embedder_path(config)
  source, params = load_embedder(path, parameters)
  params = restack(merged(params, source.model), config.model.scan)
  shapes, wanted = (
    jax.tree.map(lambda leaf: leaf.shape, tower)
    for tower in (params["image"], abstract)
  )
  if shapes != wanted:
    raise UserError(
      f"config.init.path={path}: its image tower is not that of config.model"
    )
  shardings = sharding.state_sharding(abstract, mesh)
  return jax.device_put(params["image"], shardings)


def embedder_path(config: ConfigDict) -> str:
  """Returns where the weights lie that made the embeddings of a run.

  A run that goes on from one on embeddings (`config.init.state="all"`) has them
  where that one has them.
  """
  while config.init.state == "all":
    with naming({"--checkpoint": "config.init.path"}):
      before = load_config(find(config.init.path)[0])
    if has_image_tower(before):
      break
    config = before
  return config.init.path


def load_embedder(path: str, parameters: str) -> tuple[ConfigDict, Any]:
  """Returns config and parameters of the model that made some embeddings.

  Args:
    path: of `config.init`: where it lies.
    parameters: `Description.parameters` of the embeddings.

  Raises:
    UserError: there is none, or another one.
  """
  config, params = load(path, sharding.make_mesh(), tokenizer=False)
  if fingerprint(params) != parameters:
    raise UserError(
      f"config.init.path={path}: has other parameters than the model that made "
      "the embeddings"
    )
  return config, params
