"""From a config to the parts of a program: one plain function for each."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from big_siglip import sharding
from big_siglip.config import device_problems, has_image_tower
from big_siglip.data.faults import COUNTERS
from big_siglip.data.preprocess import Preprocess
from big_siglip.data.sources import Options, Source
from big_siglip.data.text import make_tokenizer, Tokenizer
from big_siglip.errors import naming_evaluation, raise_problems, UserError
from big_siglip.evaluators import Evaluator, make_embedders, make_evaluator
from big_siglip.models import make_model
from big_siglip.models.sizes import resolve_image
from big_siglip.objectives import make_terms, Term
from big_siglip.optimizer import make_optimizer
from big_siglip.parameter_rules import frozen_mask
from big_siglip.train_step import (
  init_params,
  init_state,
  train_step,
  TrainState,
)
from big_siglip.training_data import source


@dataclasses.dataclass(frozen=True)
class Program:
  """What the loop runs on the devices.

  Attributes:
    abstract_state: shapes, dtypes and shardings of the train state.
    init: () -> TrainState, on the mesh.
    step: (TrainState, batch) -> (TrainState, metrics); the given state is
      donated.
  """

  abstract_state: TrainState
  init: Callable[[], TrainState]
  step: Callable[..., tuple[TrainState, Mapping[str, jax.Array]]]


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


def terms(config: ConfigDict, device_mesh: Mesh) -> tuple[Term, ...]:
  """Returns the summands of the loss.

  Raises:
    UserError: one of `config.terms` is of an unknown kind.
  """
  return make_terms(config, device_mesh)


def abstract_params(
  model: nn.Module, config: ConfigDict, *, whole: bool = False
) -> Any:
  """Returns the parameters' shapes and dtypes; computes nothing.

  Args:
    model: of `config.model`.
    config: the config.
    whole: with the image tower, even if the run does not have it.
  """
  image, text = _example_shapes(config, 1, whole=whole)
  return jax.eval_shape(model.init, jax.random.key(0), image, text)["params"]


def program(
  config: ConfigDict,
  device_mesh: Mesh,
  loss_terms: Sequence[Term] | None = None,
) -> Program:
  """Returns initialization and step for the mesh, not compiled yet.

  Args:
    config: the config.
    device_mesh: the mesh.
    loss_terms: the summands of the loss; None: those of the config.

  Raises:
    UserError: a rule of `config.optimizer.rules` is wrong.
  """
  model = make_model(config.model, sharding.batch_sharding(device_mesh))
  if loss_terms is None:
    loss_terms = terms(config, device_mesh)
  rng = jax.random.key(config.seed)
  image, text = _example_shapes(config, 1)
  example = {"image": image, "text": text}
  parts = {"model": model, "terms": loss_terms}
  params = jax.eval_shape(functools.partial(init_params, **parts), rng, example)
  optimizer, schedule = make_optimizer(
    config.optimizer, params, total_steps=config.total_steps
  )

  def init(rng: jax.Array) -> TrainState:
    batch = {k: jax.numpy.zeros(x.shape, x.dtype) for k, x in example.items()}
    return init_state(rng, batch, optimizer=optimizer, **parts)

  abstract = jax.eval_shape(init, rng)
  shardings = sharding.state_sharding(abstract, device_mesh)

  def step(state, batch):
    batch = dict(batch)
    faults = batch.pop("faults").sum(axis=0)  # Of the loader, for the log.
    state, metrics = train_step(
      state,
      batch,
      look=model.look,
      terms=loss_terms,
      optimizer=optimizer,
      schedule=schedule,
      seed=config.seed,
      frozen=_frozen(params, config),
      slices=_slices(config, device_mesh),
      skip_nonfinite=config.nonfinite == "skip",
    )
    return state, {**metrics, "faults": faults}

  return Program(
    abstract_state=jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      abstract,
      shardings,
    ),
    init=functools.partial(jax.jit(init, out_shardings=shardings), rng),
    step=jax.jit(
      step,
      donate_argnums=0,
      out_shardings=(shardings, sharding.replicated(device_mesh)),
    ),
  )


def abstract_batch(config: ConfigDict, device_mesh: Mesh) -> dict[str, Any]:
  """Returns shapes, dtypes and shardings of what `Program.step` takes."""
  image, text = _example_shapes(config, config.batch_size)
  counts = (config.batch_size, len(COUNTERS))
  faults = jax.ShapeDtypeStruct(counts, np.int32)
  split = sharding.batch_sharding(device_mesh)
  return {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split)
    for name, x in {
      "image": image,
      "text": text,
      "image_index": jax.ShapeDtypeStruct((config.batch_size,), np.int32),
      "faults": faults,
    }.items()
  }


def tokenizer(config: ConfigDict) -> Tokenizer:
  """Returns the tokenizer of `config.data`.

  Raises:
    UserError: its file is missing or wrong, or the text tower's vocabulary is
      smaller than its own.
  """
  data = config.data
  # Models saved before there was a choice were not cleaned.
  made = make_tokenizer(
    data.tokenizer, data.lowercase, data.pad_id, data.get("clean", "none")
  )
  vocab_size = config.model.text.vocab_size
  if made.vocab_size > vocab_size:
    raise UserError(
      f"config.model.text.vocab_size={vocab_size}: must be at least "
      f"{made.vocab_size}, the vocabulary of "
      f"config.data.tokenizer={data.tokenizer!r}"
    )
  return made


def preprocess(config: ConfigDict) -> Preprocess:
  """Returns the function from an example to what the model sees in training."""
  return dataclasses.replace(
    plain_preprocess(config),
    decoder=config.data.decoder,
    crop_min_area=config.data.crop_min_area,
    flip=config.data.flip,
  )


def plain_preprocess(config: ConfigDict) -> Preprocess:
  """Returns the same for evaluation: exact, and without augmentation."""
  return Preprocess(
    tokenizer=tokenizer(config),
    image_size=config.model.image.image_size,
    text_length=config.model.text.length,
    resize=config.data.resize,
  )


def evaluators(config: ConfigDict, device_mesh: Mesh) -> dict[str, Evaluator]:
  """Returns the evaluators of `config.evals` by name.

  They compute in float32 whatever `config.model.dtype` is.

  Raises:
    UserError: a data set, split or template is wrong.
  """
  if not config.evals:
    return {}
  float32_model = ConfigDict({**config.model, "dtype": "float32"})
  embedders = make_embedders(make_model(float32_model), device_mesh)
  plain = plain_preprocess(config)
  made = {}
  for name, spec in config.evals.items():
    with naming_evaluation(name):
      made[name] = make_evaluator(
        spec,
        open_split=functools.partial(_open_split, config, name),
        preprocess=plain,
        embedders=embedders,
      )
  return made


def _open_split(config: ConfigDict, name: str, split: str) -> Source:
  spec, section = config.evals[name], f"config.evals.{name}"
  fields = {
    "config.data.name": f"{section}.data",
    "config.data.path": f"{section}.path",
    "config.data.split": f"{section}."
    + ("split" if split == spec.split else "train_split"),
  }
  label_key = spec.get("label_key")
  options = Options(label_key=label_key) if label_key else None
  return source(config, spec.data, split, spec.path, options, fields)


def _example_shapes(config: ConfigDict, batch_size: int, *, whole=False):
  size = config.model.image.image_size
  image = jax.ShapeDtypeStruct((batch_size, size, size, 3), np.uint8)
  if not (whole or has_image_tower(config)):
    width = config.model.embed_dim or resolve_image(config.model.image).width
    image = jax.ShapeDtypeStruct((batch_size, width), np.float32)
  return (
    image,
    jax.ShapeDtypeStruct((batch_size, config.model.text.length), np.int32),
  )


def _slices(config: ConfigDict, device_mesh: Mesh) -> sharding.Slices | None:
  if config.microbatch in (None, config.batch_size):
    return None
  count = config.batch_size // config.microbatch
  return sharding.Slices(count, device_mesh, sharding.BATCH_AXES)


def _frozen(params: Any, config: ConfigDict) -> Any:
  """Returns the mask of frozen parameters, or None where there are none."""
  mask = frozen_mask(params, config.optimizer.rules)
  return mask if any(jax.tree.leaves(mask)) else None
