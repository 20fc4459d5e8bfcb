"""Programs that XLA compiles once in a worker, however many tests ask for it.

Each test makes its model and its step anew, so that JAX's own cache, which goes
by the identity of functions, does not know them again; their HLO is the same.
JAX's cache on disk would: but a program for several CPU devices that is read
from it has lost the order of its collectives. Here the compiled program itself
is kept.
"""

import hashlib
import threading

import jax
from jax._src import compiler
import numpy as np
from orbax.checkpoint._src.serialization import replica_slices

_MOST = 512  # Tests that share programs stand near each other.


def share():
  """Lets JAX ask here before it compiles for the CPU."""
  compile_anew = compiler.backend_compile_and_load
  compiled, lock = {}, threading.Lock()

  def compile_once(backend, module, executable_devices, options, callbacks):
    arguments = (backend, module, executable_devices, options, callbacks)
    if callbacks or backend.platform != "cpu":
      return compile_anew(*arguments)
    text = module.operation.get_asm(enable_debug_info=False)
    key = (
      id(backend),
      tuple(device.id for device in executable_devices),
      options.SerializeAsString(),
      hashlib.sha256(text.encode()).digest(),
    )
    with lock:
      program = compiled.pop(key, None)
    if program is None:
      program = compile_anew(*arguments)
    with lock:
      compiled[key] = program  # The newest comes last.
      if len(compiled) > _MOST:
        del compiled[next(iter(compiled))]
    return program

  compiler.backend_compile_and_load = compile_once


def slice_on_host():
  """Lets Orbax cut arrays without a compiled program for each cut.

  Of an array that lies whole on eight devices each writes an eighth. JAX would
  compile every shape, device and place anew: 160 programs for a tiny model.
  """
  data = replica_slices.ReplicaSlice.data

  def cut(piece):
    if piece.slice_args is None:
      return data(piece)
    of, whole = piece.slice_args, np.asarray(piece.unsliced_data)
    index = (slice(None),) * of.axis + (slice(of.start_index, of.limit_index),)
    return jax.device_put(whole[index], piece.unsliced_data.sharding)

  replica_slices.ReplicaSlice.data = cut
