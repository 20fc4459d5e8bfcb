"""How fast a run is, and what it waits for."""

from collections.abc import Iterator
import contextlib
import time

import jax

from big_siglip.models import flops
from big_siglip.objectives import costs


class Meter:
  """Examples a second, model FLOPs utilization and the share of data waits.

  The utilization counts the products of the towers and of `config.terms`. A
  decoder's logits are left out: their number is that of the real targets.
  """

  def __init__(self, config, num_devices: int):
    """Starts the clock; the first step, which compiles, is left out."""
    self._batch_size = config.batch_size
    own = costs.flops_of_terms(config, logits=False)
    self._flops = flops.flops_per_step(config) + sum(own.values())
    peak = flops.peak_flops(jax.devices()[0])
    self._peak = peak and peak * num_devices
    self._first = True
    self.restart()

  def restart(self) -> None:
    """Starts a new window."""
    self._start, self._steps, self._waited = time.perf_counter(), 0, 0.0

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Counts the time inside the block as waiting for data."""
    start = time.perf_counter()
    yield
    self._waited += time.perf_counter() - start

  def step_done(self) -> None:
    """Counts a step."""
    self._steps += 1
    if self._first:
      self._first = False
      self.restart()

  def read(self) -> dict[str, float]:
    """Returns the rates of the window, and starts a new one."""
    elapsed = time.perf_counter() - self._start
    rates = {}
    if self._steps:
      steps_per_second = self._steps / elapsed
      rates["examples_per_second"] = self._batch_size * steps_per_second
      rates["data_wait"] = self._waited / elapsed
      if self._peak:
        rates["mfu"] = self._flops * steps_per_second / self._peak
    self.restart()
    return rates
