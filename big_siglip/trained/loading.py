"""A trained model, ready to be used: `big_siglip.load`."""

import os

import jax

from big_siglip import build, platforms, sharding
from big_siglip.errors import naming, UserError
from big_siglip.evaluators import exact_model, make_embedders
from big_siglip.models import make_model
from big_siglip.schema.words import DTYPES
from big_siglip.trained import calibrated, inputs, naflex, saved
from big_siglip.trained.inference import Model
from big_siglip.trained.placement import DeviceLike, find_devices


def load(
  path: str | os.PathLike[str],
  *,
  dtype: str = "float32",
  device: DeviceLike = None,
  batch_size: int = 64,
  calibration: str = calibrated.KEPT,
  max_patches: int | None = None,
) -> Model:
  """See `big_siglip.load`."""
  if not isinstance(path, str | os.PathLike):
    raise UserError(f"path={path!r}: must be a string or a pathlib.Path")
  path = os.fspath(path)
  if not path:
    raise UserError("path='': must name a model's folder, file or repository")
  if dtype not in DTYPES:
    raise UserError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
  inputs.check_batch_size(batch_size)
  platforms.prepare(keep=False)
  mesh = sharding.make_mesh(devices=find_devices(device))
  with naming({"--checkpoint": "path"}):
    config, params = saved.load(path, mesh)
  if max_patches is not None:
    naflex.set_length(config.model, max_patches, path)
  config.model = exact_model(config.model)
  config.model.dtype = dtype
  platform = mesh.devices.flat[0].platform
  if config.model.attention == "auto" and platform != jax.default_backend():
    config.model.attention = "xla"  # "auto" looks at the default devices.
  return Model(
    config,
    params,
    mesh,
    build.preprocess(config),
    make_embedders(make_model(config.model), mesh),
    batch_size,
    path,
    calibrated.load(path, params, calibration),
  )
