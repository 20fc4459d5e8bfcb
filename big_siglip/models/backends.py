"""Which implementation of attention can compute what, and what "auto" is.

The names are those of `words.ATTENTIONS`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from big_siglip.errors import UserError
from big_siglip.models import short_attention
from big_siglip.sharding import batch_devices

# What "auto" tries in turn on a platform. The kernel "short" has not run on a
# TPU yet: who wants it, names it.
_ORDER = {
  "cpu": ("heads_first",),
  "gpu": ("cudnn", "xla"),
  "tpu": ("splash", "xla"),
}
# Sequences that are shorter than a block of splash would be computed with pads.
_SPLASH_PAYS_ABOVE = short_attention.LANES


@dataclasses.dataclass(frozen=True)
class Problem:
  """What is to be computed.

  Attributes:
    platform: "cpu", "gpu" or "tpu".
    dtype: of the computation.
    batch: B, of all devices.
    queries: Q, length of a sequence.
    keys: K, length of a sequence.
    heads: H, of all devices.
    size: h.
    mask: whether some keys are not real.
    causal: whether query i sees the keys up to i alone.
    mixed: whether that holds for some sequences alone.
    batch_shards: how many devices share the batch.
    head_shards: how many devices share the heads.
    capability: of a GPU: CUDA's, such as "9.0", or AMD's name of it, such as
      "gfx942"; "": not known.
  """

  platform: str
  dtype: str
  batch: int
  queries: int
  keys: int
  heads: int
  size: int
  mask: bool = False
  causal: bool = False
  mixed: bool = False
  batch_shards: int = 1
  head_shards: int = 1
  capability: str = ""


def choose(
  backend: str,
  batch: int,
  length: int,
  heads: int,
  size: int,
  dtype: str,
  sharding: NamedSharding | None = None,
  *,
  keys: int | None = None,
  mask: bool = False,
  causal: bool = False,
  mixed: bool = False,
) -> str:
  """Returns the implementation to take: what is named, if it can.

  "auto" is the first of a platform's that suits. So is a named kernel where
  nothing but the number of sequences keeps it: one example, as parameters are
  initialised on, or rows that it cannot fill. A single query, as of attention
  pooling, is left to "xla" by every kernel.

  Args:
    backend: a name of `words.ATTENTIONS`.
    batch: B, of all devices.
    length: Q; also K, unless `keys` says another.
    heads: H, of all devices.
    size: h.
    dtype: of the computation.
    sharding: of the batch, whose mesh also says the platform; None: the default
      device.
    keys: K.
    mask: whether some keys are not real.
    causal: whether query i sees the keys up to i alone.
    mixed: whether that holds for some sequences alone.

  Raises:
    UserError: what is named cannot compute this.
  """
  mesh = None if sharding is None else sharding.mesh
  problem = Problem(
    platform_of(sharding),
    dtype,
    batch,
    length,
    length if keys is None else keys,
    heads,
    size,
    mask,
    causal,
    mixed,
    1 if mesh is None else batch_devices(mesh),
    1 if mesh is None else mesh.shape["tensor"],
    _capability_of(sharding),
  )
  if backend != "auto":
    if length == 1 and backend in ("short", "splash", "cudnn"):
      return "xla"
    need = lack(backend, problem)
    if not need and suits(backend, problem):
      return backend
    if need and batch > 1:
      raise UserError(f"config.model.attention={backend}: {need}")
  return _auto(problem)


def suits(backend: str, problem: Problem) -> bool:
  """Returns whether an implementation can compute it."""
  if lack(backend, problem):
    return False
  if backend not in ("short", "splash"):
    return True  # Whatever the compiler is given it spreads over the devices.
  rows, rest = divmod(problem.batch, problem.batch_shards)
  if rest:
    return False
  whole = backend == "splash" or problem.queries != problem.keys
  return whole or short_attention.fills_tiles(rows, problem.queries)


def lack(backend: str, problem: Problem) -> str:
  """Returns what an implementation needs and a problem has not; "": nothing.

  Whatever the number of examples is; see `suits`.
  """
  match backend:
    case "short":
      return _short_lack(problem)
    case "splash":
      if problem.platform != "tpu":
        return f"needs a TPU, not a {problem.platform}"
      if problem.mixed:
        return "masks all sequences alike; xla and auto do not have to"
      return _heads_lack(problem)
    case "cudnn":
      return _cudnn_lack(problem)
  return ""


def platform_of(sharding: NamedSharding | None) -> str:
  """Returns "cpu", "gpu" or "tpu"; None: of the default device."""
  if sharding is None:
    return jax.default_backend()
  return sharding.mesh.devices.flat[0].platform


def _capability_of(sharding):
  """Returns `Problem.capability`; devices that are not there have none."""
  if platform_of(sharding) != "gpu":
    return ""
  device = (
    jax.devices()[0] if sharding is None else sharding.mesh.devices.flat[0]
  )
  return str(getattr(device, "compute_capability", ""))


def _auto(problem):
  names = _ORDER.get(problem.platform, ("xla",))
  return next(
    name for name in names if suits(name, problem) and _pays(name, problem)
  )


def _pays(backend, problem):
  """Returns whether a kernel has enough to do."""
  if backend == "splash":
    longest = max(problem.queries, problem.keys)
    return problem.queries > 1 and longest > _SPLASH_PAYS_ABOVE
  return backend != "cudnn" or problem.queries > 1


def _short_lack(problem):
  if problem.mask:
    return "has no masks; splash, xla and auto have"
  if problem.queries != problem.keys:
    if not short_attention.holds(problem.queries, problem.keys):
      return (
        f"needs fewer logits than {problem.queries} queries and {problem.keys} "
        "keys make"
      )
    return _heads_lack(problem)
  if problem.causal and not short_attention.fills_lanes(problem.queries):
    return (
      "is causal where a length divides 128 or is a multiple of it, not of "
      f"{problem.queries}; splash, xla and auto are"
    )
  return _heads_lack(problem) or short_attention.lack(
    problem.queries,
    problem.heads // problem.head_shards,
    problem.size,
    jnp.dtype(problem.dtype).itemsize,
  )


def _heads_lack(problem):
  if problem.heads % problem.head_shards:
    return (
      f"needs heads that config.mesh.tensor={problem.head_shards} divides, not "
      f"{problem.heads}"
    )
  return ""


def _cudnn_lack(problem):
  """As JAX's `check_layout` and `check_is_flash_attention` have it.

  These take every attention for one with a bias, which wants even lengths. The
  generation is cuDNN's own condition (its documentation, "Attention").
  """
  if problem.platform != "gpu":
    return f"needs a GPU, not a {problem.platform}"
  generation = problem.capability.partition(".")[0]
  if generation and not generation.isdecimal():
    return f"needs a GPU of NVIDIA, not {problem.capability}"
  if generation and int(generation) < 8:
    return (
      "needs a GPU of compute capability 8.0 (Ampere) or later, not "
      f"{problem.capability}"
    )
  if jnp.dtype(problem.dtype) not in (jnp.bfloat16, jnp.float16):
    return f"needs config.model.dtype=bfloat16, not {problem.dtype}"
  if problem.size % 8 or problem.size > 128:
    return (
      f"needs heads of a multiple of 8 up to 128 numbers, not {problem.size}"
    )
  if problem.queries % 2 or problem.keys % 2:
    return (
      f"needs even lengths, not {problem.queries} queries and {problem.keys} "
      "keys"
    )
  return ""
