"""Several trainings at once in one compiled program: the project's own step.

`train_step` is a pure function of state and batch, so `jax.vmap` makes of one
training R of them, which differ in seed and learning rate, and `jax.lax.scan`
takes all steps without returning to Python.

Shape letters: R trainings, T steps, B batch.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from big_siglip import build
from big_siglip.command_line import load_config
from big_siglip.models import make_model
from big_siglip.objectives import make_terms
from big_siglip.optimizer import make_optimizer
from big_siglip.train_step import init_state, train_step
from studies.data import OVERRIDES, problem, ROOT


@dataclasses.dataclass(frozen=True)
class Cell:
  """One setting of a study: all but seed and learning rate.

  Attributes:
    data: "digits" or "scenes".
    loss: "sigmoid" or "softmax".
    batch_size: B.
    examples: seen in training; T is their number over B.
    bias: the sigmoid's first bias; None: log(1 / (B - 1)).
    b2: of Adam.
    shuffled: share of the training images whose captions are exchanged.
    duplicates: config.loss.duplicates; equal texts are duplicates.
  """

  data: str
  loss: str
  batch_size: int
  examples: int
  bias: float | None = None
  b2: float = 0.95
  shuffled: float = 0.0
  duplicates: str = "negative"


class Trained(NamedTuple):
  """What R trainings came to.

  Attributes:
    params: with a first dimension R.
    loss: [R, T] of every step.
    grad_norm: [R, T] before clipping.
    duplicate_pairs: [R, T], or None where none were looked for.
  """

  params: Any
  loss: np.ndarray
  grad_norm: np.ndarray
  duplicate_pairs: np.ndarray | None


def make_config(cell: Cell):
  """Returns the whole config of a cell; its learning rate is 1."""
  fields = {
    **OVERRIDES[cell.data],
    "total_steps": cell.examples // cell.batch_size,
    "batch_size": cell.batch_size,
    "loss.name": cell.loss,
    "loss.duplicates": cell.duplicates,
    "optimizer.b2": cell.b2,
    # The rate multiplies all updates, see `_program`, and so cannot leave the
    # decay alone; these trainings are too short to need any.
    "optimizer.learning_rate": 1.0,
    "optimizer.weight_decay": 0.0,
  }
  arguments = [f"--config.{field}={value}" for field, value in fields.items()]
  return load_config(str(ROOT / "configs" / f"{cell.data}.py"), arguments)


def train(
  cell: Cell, learning_rates: Sequence[float], seeds: Sequence[int]
) -> Trained:
  """Trains once for each pair of learning rate and seed."""
  data = problem(cell.data)
  orders = [_order(cell, seed, data.text.shape) for seed in seeds]
  images, owners, captions = (np.stack(x) for x in zip(*orders, strict=True))
  bias = cell.bias
  if bias is None:
    bias = -float(np.log(cell.batch_size - 1))
  # What remains is what the compiled program depends on.
  params, metrics = _program(dataclasses.replace(cell, shuffled=0, bias=0))(
    jnp.asarray(seeds),
    jnp.full(len(seeds), bias, jnp.float32),
    jnp.asarray(learning_rates, jnp.float32),
    (images, owners, captions),
  )
  metrics = jax.device_get(metrics)
  return Trained(
    params,
    metrics["loss"],
    metrics["grad_norm"],
    metrics.get("duplicate_pairs"),
  )


def scores(cell: Cell, params: Any, split: str) -> list[float]:
  """Returns what each of R trainings scores on "validation" or "test"."""
  held_out = getattr(problem(cell.data), split)
  image, text = _embed(cell.data)(params, held_out.image, held_out.text)
  pairs = zip(np.asarray(image), np.asarray(text), strict=True)
  return [held_out.score(*pair) for pair in pairs]


def _order(cell: Cell, seed: int, shape: tuple[int, ...]):
  """Returns images, whose texts they get, and which of them; each [T, B]."""
  rng = np.random.default_rng(seed)
  count, num_captions = shape[:2]
  steps = cell.examples // cell.batch_size
  total = steps * cell.batch_size
  epochs = [rng.permutation(count) for _ in range(-(-total // count))]
  order = np.concatenate(epochs)[:total]
  owners = np.arange(count)
  exchanged = rng.permutation(count)[: round(cell.shuffled * count)]
  owners[exchanged] = np.roll(exchanged, 1)
  captions = rng.integers(num_captions, size=total)
  return [
    x.reshape(steps, -1).astype(np.int32)
    for x in (order, owners[order], captions)
  ]


@functools.lru_cache(maxsize=4)
def _program(cell: Cell):
  """Returns (R seeds, biases, rates, RTB orders) -> (params, metrics RT)."""
  config, data = make_config(cell), problem(cell.data)
  model = make_model(config.model)
  mesh = build.mesh(config, jax.devices()[:1])
  base, schedule = make_optimizer(
    config.optimizer,
    build.abstract_params(model, config),
    total_steps=config.total_steps,
  )
  images, texts = jnp.asarray(data.image), jnp.asarray(data.text)
  terms = make_terms(config, mesh)
  options = dict(look=model.look, terms=terms, schedule=schedule)

  def batch_of(order):
    index, owner, caption = order
    return {
      "image": images[index],
      "text": texts[owner, caption],
      "image_index": index,
    }

  def init(seed, bias, order):
    first = jax.tree.map(lambda x: x[0, :1], order)
    state = init_state(
      jax.random.key(seed),
      batch_of(first),
      model=model,
      terms=terms,
      optimizer=base,
    )
    # As config.model.logit_bias_init does, but one program serves all values.
    return state.replace(params={**state.params, "logit_bias": bias})

  def step(state, rate, order):
    # `base` has the rate 1: its updates times another are that rate's.
    def update(*arguments):
      updates, state = base.update(*arguments)
      return jax.tree.map(lambda x: rate * x, updates), state

    optimizer = optax.GradientTransformation(base.init, update)
    return train_step(state, batch_of(order), optimizer=optimizer, **options)

  # At the level of programs that run for days, compiling takes longer than all
  # trainings of a cell.
  quickly = {"xla_backend_optimization_level": 1}

  @functools.partial(jax.jit, compiler_options=quickly)
  def run(seeds, biases, rates, orders):
    def body(states, orders):
      states, metrics = jax.vmap(step)(states, rates, orders)
      kept = ("loss", "grad_norm", "duplicate_pairs")
      return states, {k: metrics[k] for k in kept if k in metrics}

    states = jax.vmap(init)(seeds, biases, orders)
    by_step = jax.tree.map(lambda x: x.swapaxes(0, 1), orders)
    states, metrics = jax.lax.scan(body, states, by_step)
    return states.params, jax.tree.map(lambda x: x.swapaxes(0, 1), metrics)

  return run


@functools.cache
def _embed(data: str):
  """Returns (params, images, texts) -> embeddings, R first."""
  model = make_model(make_config(Cell(data, "sigmoid", 64, 6_400)).model)

  @jax.jit
  def embed(params, image, text):
    def towers(params):
      x, y, _, _ = model.apply({"params": params}, image, text)
      return x, y

    return jax.lax.map(towers, params)

  return embed
