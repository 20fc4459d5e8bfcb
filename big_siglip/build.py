"""From a config to the parts of a program: one plain function for each."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

from absl import logging
from flax import linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from big_siglip import sharding
from big_siglip.config import (
  device_problems,
  has_image_tower,
  patch_lengths,
  unfit_evals,
)
from big_siglip.data.batch import Fields, union
from big_siglip.data.preprocessing import Preprocess, Preprocessing
from big_siglip.data.rows import METADATA
from big_siglip.data.text import Tokenizer
from big_siglip.data.views import Embeddings, Patches, Pixels, Tokens, View
from big_siglip.device_program import make_program, Program
from big_siglip.errors import naming_evaluation, raise_problems, UserError
from big_siglip.evaluators import (
  Evaluator,
  exact_model,
  make_embedders,
  make_evaluator,
  make_sights,
)
from big_siglip.evaluators.scribe import find_decoder, Scribe
from big_siglip.models import make_model
from big_siglip.objectives import Term, term_views
from big_siglip.schema.sizes import has_text_tower, resolve_image
from big_siglip.train_step import (
  init_params,
)
from big_siglip.training_data import evaluation_source


def mesh(
  config: ConfigDict, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Returns the mesh of `config.mesh` over devices; None: all attached ones.

  Raises:
    UserError: mesh or batch do not fit the devices.
  """
  device_mesh = sharding.make_mesh(**config.mesh, devices=devices)
  batch_devices = sharding.batch_devices(device_mesh)
  raise_problems(device_problems(config, batch_devices))
  if devices is None and batch_devices % jax.process_count():
    raise UserError(
      f"config.mesh.tensor={device_mesh.shape['tensor']}: must divide the "
      f"{jax.local_device_count()} devices of a process"
    )
  return device_mesh


def abstract_params(
  model: nn.Module, config: ConfigDict, *, whole: bool = False
) -> Any:
  """Returns the parameters' shapes and dtypes; computes nothing.

  Args:
    model: of `config.model`.
    config: the config.
    whole: with the image tower, even if the run does not have it.
  """
  example = sharding.abstract(fields(config, whole=whole), 1)
  init = functools.partial(init_params, model=model, terms=())
  return jax.eval_shape(init, jax.random.key(0), example)


def program(
  config: ConfigDict,
  device_mesh: Mesh,
  loss_terms: Sequence[Term] | None = None,
  began: Mapping[str, int] | None = None,
) -> Program:
  """Returns initialization and step for the mesh, not compiled yet.

  Args:
    config: the config.
    device_mesh: of `mesh`.
    loss_terms: the summands of the loss; None: those of the config.
    began: see `make_optimizer`; the state is the same with any.

  Raises:
    UserError: a rule of `config.optimizer.rules` is wrong.
  """
  return make_program(config, fields(config), device_mesh, loss_terms, began)


def abstract_batch(
  config: ConfigDict, device_mesh: Mesh, length: int | None = None
) -> dict[str, Any]:
  """Returns shapes, dtypes and shardings of what `Program.step` takes.

  Args:
    config: the config.
    device_mesh: of `mesh`.
    length: patches of each image, where these keep their shape; None: as the
      first batch has.
  """
  parts = dict(step_fields(config))
  if length is not None:
    numbers = parts["patches"].shape[1:]
    parts["patches"] = parts["patches"]._replace(shape=(length, *numbers))
  return sharding.abstract(parts, config.batch_size, device_mesh)


def preprocess(config: ConfigDict) -> Preprocess:
  """Returns what comes before the towers in evaluation: no augmentation.

  Raises:
    UserError: the tokenizer's file is missing or wrong, or the text tower's
      vocabulary is smaller than its own.
  """
  made = Preprocess.of(Preprocessing.of(config))
  text = config.model.get("text")
  if text and made.tokenizer.vocab_size > text.vocab_size:
    raise UserError(
      f"config.model.text.vocab_size={text.vocab_size}: must be at least "
      f"{made.tokenizer.vocab_size}, the vocabulary of "
      f"config.data.tokenizer={made.value.tokenizer!r}"
    )
  return made


def views(config: ConfigDict) -> tuple[View, ...]:
  """Returns what makes the arrays of a training batch.

  Raises:
    UserError: the tokenizer's file is missing or wrong, or the text tower's
      vocabulary is smaller than its own.
  """
  data, made = config.data, preprocess(config)
  seen, *others = _plain_views(config, made.tokenizer, has_image_tower(config))
  augmented = {"crop_min_area": data.crop_min_area, "flip": data.flip}
  if isinstance(seen, Pixels):
    seen = Pixels(**vars(made.value.square()), **augmented)
  elif isinstance(seen, Patches):
    seen = dataclasses.replace(seen, resize=data.resize, **augmented)
  return seen, *others, *_term_views(config, made.tokenizer, seen)


def fields(config: ConfigDict, *, whole: bool = False) -> Fields:
  """Returns the arrays of a training batch; opens nothing.

  Args:
    config: the config.
    whole: with images, even if the run trains on embeddings of them.
  """
  parts = _plain_views(config, None, whole or has_image_tower(config))
  parts += _term_views(config, None, None)
  return union(view.fields(0) for view in parts)


def step_fields(config: ConfigDict) -> Fields:
  """Returns what of a batch goes to the devices: see `Program.step`."""
  names = ["faults"]
  if config.loss.duplicates != "negative" and config.loss.same != "text":
    names.append("image_index")
  return union([fields(config), {name: METADATA[name] for name in names}])


def _plain_views(
  config: ConfigDict, made: Tokenizer | None, image_tower: bool
) -> tuple[View, ...]:
  """Returns views without augmentation, by `config.model` alone."""
  image = config.model.image
  if image_tower and image.max_patches is not None:
    patch = resolve_image(image).patch_size or 1
    seen = Patches(patch_lengths(config), patch, config.get("seed", 0))
  elif image_tower:
    seen = Pixels(image.image_size)
  else:
    seen = Embeddings(config.model.embed_dim or resolve_image(image).width)
  has_texts = has_text_tower(config.model)
  return seen, *([Tokens(made, config.model.text.length)] if has_texts else ())


def _term_views(
  config: ConfigDict, made: Tokenizer | None, seen: View | None
) -> tuple[View, ...]:
  """Returns what terms of the loss want beside the plain views.

  Args:
    config: the config.
    made: the tokenizer; None where fields alone are wanted.
    seen: the view of the images; None there too.
  """
  pixels = seen if isinstance(seen, Pixels | Patches) else None
  views: list[View] = []
  for name, spec in config.get("terms", {}).items():
    if spec.kind == "captioning":
      made_view = term_views.of_captioning(name, spec, config, made, pixels)
      views.append(made_view)
    elif spec.kind == "distillation":
      views += term_views.of_distillation(spec, config.model)
  return tuple(views)


def evaluators(config: ConfigDict, device_mesh: Mesh) -> dict[str, Evaluator]:
  """Returns the evaluators of `config.evals` by name.

  They compute in float32 whatever `config.model.dtype` is.

  Raises:
    UserError: a data set, split or template is wrong.
  """
  if not config.evals:
    return {}
  raise_problems(unfit_evals(config))
  model = make_model(exact_model(config.model))
  embedders = make_embedders(model, device_mesh)
  embedders = embedders._replace(sigmoid=_trains_bias(config))
  # One for all: they share what is compiled, and the random tower.
  prepared, made = preprocess(config), {}
  sights = make_sights(exact_model(config.model), device_mesh, prepared)

  @functools.cache
  def scribe() -> Scribe:
    found = find_decoder(config)
    if found is None or prepared.tokenizer is None:
      raise TypeError("`unfit_evals` refuses what has no decoder")
    return Scribe(
      exact_model(config.model), *found, prepared.tokenizer, device_mesh
    )

  for name, spec in config.evals.items():
    if spec.kind in ("calibration", "loss_health") and not _trains_bias(config):
      logging.warning(
        "evals.%s: config.loss does not train the logits' bias, so that the "
        "sigmoid means nothing before its refit",
        name,
      )
    with naming_evaluation(name):
      made[name] = make_evaluator(
        spec,
        open_split=functools.partial(evaluation_source, config, name),
        preprocess=prepared,
        embedders=embedders,
        sights=sights,
        scribe=scribe,
      )
  return made


def _trains_bias(config: ConfigDict) -> bool:
  return config.get("loss", {}).get("name", "sigmoid").endswith("sigmoid")
