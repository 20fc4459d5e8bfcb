"""One step in slices on a mesh, for the tests that compare several of both."""

import functools

import jax
import optax
import pytest
import runs

from big_siglip import sharding
from big_siglip.sharding import Slices
from big_siglip.train_step import init_state, train_step

SGD = optax.sgd(1.0)  # So that the gradient is what the parameters move by.


def shapes_and_counts(count):
  """Parametrizes a test: (2, 2, 2) with one count, the rest when slow."""
  return pytest.mark.parametrize(
    "shape,count",
    [
      ((2, 2, 2), count),
      *(
        pytest.param(shape, count, marks=pytest.mark.slow)
        for shape in ((2, 2, 2), (1, 8, 1), (8, 1, 1), (1, 1, 1))
        for count in (1, 2, 4, 8)
      ),
    ],
  )


# Of 64 examples; the limit is of those of a device that are taken back at once.
shapes_counts_and_limits = pytest.mark.parametrize(
  ("shape", "count", "limit"),
  [
    ((2, 2, 2), 1, 4),  # Of the 16 examples of a device.
    pytest.param((2, 2, 2), 1, 100, marks=pytest.mark.slow),
    pytest.param((1, 8, 1), 1, 3, marks=pytest.mark.slow),
    # Slices of slices, of which it is 2 examples a device.
    pytest.param((8, 1, 1), 4, 1, marks=pytest.mark.slow),
    pytest.param((1, 1, 1), 2, 8, marks=pytest.mark.slow),
  ],
)


def first_state(model, terms, batch):
  """Returns the state before the first step, on the host."""
  example = {name: x[:1] for name, x in batch.items()}
  init = functools.partial(init_state, model=model, terms=terms, optimizer=SGD)
  return jax.device_get(jax.jit(init)(jax.random.key(0), example))


def take(state, batch, model, terms, mesh, count):
  """Returns metrics, the gradient by path, and the state after a step."""
  step = jax.jit(
    functools.partial(
      train_step,
      look=model.look,
      terms=terms,
      optimizer=SGD,
      schedule=optax.constant_schedule(1.0),
      seed=3,
      slices=Slices(count, mesh, sharding.BATCH_AXES) if count > 1 else None,
    )
  )
  state = jax.device_put(state, sharding.state_sharding(state, mesh))
  after, metrics = step(state, sharding.to_global(mesh, batch))
  gradient = jax.tree.map(
    lambda a, b: a - b, *jax.device_get((state.params, after.params))
  )
  return (
    {k: float(v) for k, v in metrics.items()},
    runs.flatten(gradient),
    after,
  )
