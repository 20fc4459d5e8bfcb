"""From a config to the parts of a program: one plain function for each."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

from absl import logging
from flax import linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from big_siglip import ema, sharding
from big_siglip.config import device_problems, has_image_tower, unfit_evals
from big_siglip.data.batch import Fields, union
from big_siglip.data.preprocessing import Preprocess, Preprocessing
from big_siglip.data.rows import METADATA
from big_siglip.data.text import Tokenizer
from big_siglip.data.views import Embeddings, Pixels, Tokens, View
from big_siglip.errors import naming_evaluation, raise_problems, UserError
from big_siglip.evaluators import (
  Evaluator,
  exact_model,
  make_embedders,
  make_evaluator,
)
from big_siglip.models import make_model
from big_siglip.objectives import make_terms, Term, total
from big_siglip.optimizer import make_optimizer
from big_siglip.parameter_rules import frozen_mask
from big_siglip.schema.sizes import has_text_tower, resolve_image
from big_siglip.train_step import (
  init_params,
  init_state,
  train_step,
  TrainState,
)
from big_siglip.training_data import evaluation_source


@dataclasses.dataclass(frozen=True)
class Program:
  """What the loop runs on the devices.

  Attributes:
    abstract_state: shapes, dtypes and shardings of the train state.
    init: () -> TrainState, on the mesh.
    init_params: () -> its parameters alone.
    step: (TrainState, batch) -> (TrainState, metrics); the given state is
      donated.
    start_from: (TrainState, parameters) -> the state before the first step with
      these parameters: their average and what terms carry start from them too.
  """

  abstract_state: TrainState
  init: Callable[[], TrainState]
  init_params: Callable[[], Any]
  step: jax.stages.Wrapped
  start_from: Callable[[TrainState, Any], TrainState]


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
  model = make_model(config.model, sharding.batch_sharding(device_mesh))
  if loss_terms is None:
    loss_terms = make_terms(config, device_mesh)
  rng = jax.random.key(config.seed)
  example = sharding.abstract(fields(config), 1)
  parts = {"model": model, "terms": loss_terms}
  params = jax.eval_shape(functools.partial(init_params, **parts), rng, example)
  optimizer, schedule = make_optimizer(
    config.optimizer, params, total_steps=config.total_steps, began=began
  )
  decay = config.ema.decay

  def begun(make: Callable[..., Any], **options: Any) -> Any:
    batch = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), example)
    return make(rng, batch, **parts, **options)

  init = functools.partial(
    begun, init_state, optimizer=optimizer, average=decay is not None
  )
  abstract = jax.eval_shape(init)
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
      ema_decay=decay,
    )
    return state, {**metrics, "faults": faults}

  return Program(
    abstract_state=sharding.placed(abstract, device_mesh),
    init=jax.jit(init, out_shardings=shardings),
    init_params=jax.jit(
      functools.partial(begun, init_params), out_shardings=shardings.params
    ),
    step=jax.jit(
      step,
      donate_argnums=0,
      out_shardings=(shardings, sharding.replicated(device_mesh)),
    ),
    start_from=functools.partial(_start_from, loss_terms),
  )


def abstract_batch(config: ConfigDict, device_mesh: Mesh) -> dict[str, Any]:
  """Returns shapes, dtypes and shardings of what `Program.step` takes."""
  return sharding.abstract(step_fields(config), config.batch_size, device_mesh)


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
  seen, texts = _plain_views(config, made.tokenizer, has_image_tower(config))
  if isinstance(seen, Pixels):
    square = vars(made.value.square())
    seen = Pixels(**square, crop_min_area=data.crop_min_area, flip=data.flip)
  return seen, texts


def fields(config: ConfigDict, *, whole: bool = False) -> Fields:
  """Returns the arrays of a training batch; opens nothing.

  Args:
    config: the config.
    whole: with images, even if the run trains on embeddings of them.
  """
  parts = _plain_views(config, None, whole or has_image_tower(config))
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
  if image_tower:
    seen = Pixels(image.image_size)
  else:
    seen = Embeddings(config.model.embed_dim or resolve_image(image).width)
  has_texts = has_text_tower(config.model)
  return seen, *([Tokens(made, config.model.text.length)] if has_texts else ())


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
  embedders = embedders._replace(sigmoid=not _has_softmax(config))
  prepared, made = preprocess(config), {}
  for name, spec in config.evals.items():
    if spec.kind in ("calibration", "loss_health") and _has_softmax(config):
      logging.warning(
        "evals.%s: a softmax does not train the logits' bias, so that the "
        "sigmoid means nothing before its refit",
        name,
      )
    with naming_evaluation(name):
      made[name] = make_evaluator(
        spec,
        open_split=functools.partial(evaluation_source, config, name),
        preprocess=prepared,
        embedders=embedders,
      )
  return made


def _has_softmax(config: ConfigDict) -> bool:
  return config.get("loss", {}).get("name", "").endswith("softmax")


def _start_from(
  loss_terms: Sequence[Term], state: TrainState, params: Any
) -> TrainState:
  return state.replace(
    params=params,
    carry=total.init_carry(loss_terms, params),
    ema=None if state.ema is None else ema.start(params),
  )


def _slices(config: ConfigDict, device_mesh: Mesh) -> sharding.Slices | None:
  if config.microbatch in (None, config.batch_size):
    return None
  count = config.batch_size // config.microbatch
  return sharding.Slices(count, device_mesh, sharding.BATCH_AXES)


def _frozen(params: Any, config: ConfigDict) -> Any:
  """Returns the mask of frozen parameters, or None where there are none."""
  mask = frozen_mask(params, config.optimizer.rules)
  return mask if any(map(np.any, jax.tree.leaves(mask))) else None
