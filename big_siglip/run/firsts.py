"""What a run waits for before its steps follow each other."""

from collections.abc import Iterator, Mapping
import contextlib
from typing import Any

from jax.sharding import Mesh

from big_siglip import durations, progress
from big_siglip.run import workdir


class Firsts:
  """Says what is done, where the bar of the steps does not move."""

  def __init__(self, config: Any, mesh: Mesh):
    """Knows no step yet.

    Args:
      config: the config.
      mesh: of the devices.
    """
    self._config, self._mesh = workdir.as_json(config), str(mesh)
    # Of images that keep their shape, each length has a step of its own.
    self._lengths: set[int | None] = set()

  def reading(self) -> contextlib.AbstractContextManager[None]:
    """Says that the first batch is read, and of later ones nothing."""
    if self._lengths:
      return contextlib.nullcontext()
    return self._waiting("reading the first batch")

  @contextlib.contextmanager
  def compiling(self, batch: Mapping[str, Any]) -> Iterator[bool]:
    """Says that the step is compiled, if it is for arrays of a new shape.

    Yields:
      Whether it is.
    """
    patches = batch.get("patches")
    length = None if patches is None else patches.shape[1]
    if length in self._lengths:
      yield False
      return
    self._lengths.add(length)
    more = "" if length is None else f" for {length} patches"
    with self._waiting(f"compiling the step{more}"):
      yield True

  def _waiting(self, what: str) -> contextlib.AbstractContextManager[None]:
    own = durations.key(what, self._mesh, self._config)
    return progress.waiting(what, own)
