"""Saves and restores parameters, optimizer state and data position together.

A checkpoint is one folder, `STEP/`, of three items: `params`, `optimizer` and
`data` (JSON: where the input pipeline stands), and of `ema` and `carry` where
the state has them. It is written beside its final name and renamed when whole,
so a process killed while saving leaves nothing that could be mistaken for a
checkpoint.
"""

from collections.abc import Collection, Mapping
import json
from typing import Any

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import orbax.checkpoint as ocp

from big_siglip.errors import UserError
from big_siglip.run import processes
from big_siglip.sharding import flatten, path_string, placed
from big_siglip.train_step import TrainState


class Checkpoints:
  """The checkpoints of one run, `DIR/STEP/`."""

  def __init__(self, directory: epath.PathLike, *, keep: int):
    """Opens `directory`; `keep` counts the newest ones to be kept.

    `keep` is at least 2, so that a damaged one has a predecessor.
    """
    self._directory = epath.Path(directory)
    self._keep = keep
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    managers = ocp.checkpoint_managers
    # The loop decides when to save (interval, end, SIGTERM) and forces it, so
    # there is no save policy that could drop a preemption save.
    options = ocp.CheckpointManagerOptions(
      preservation_policy=managers.LatestN(self._keep),
      cleanup_tmp_directories=True,
      enable_async_checkpointing=True,
    )
    return ocp.CheckpointManager(self._directory, options=options)

  def save(self, state: TrainState, data: Mapping[str, Any]) -> None:
    """Starts saving `state` under its step; returns before it is on disk."""
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    items = {k: ocp.args.StandardSave(v) for k, v in _items(state).items()}
    position = {**data, "fingerprint": int(_fingerprint(state))}
    self._manager.save(
      step,
      force=True,
      args=ocp.args.Composite(**items, data=ocp.args.JsonSave(position)),
    )

  def steps(self) -> list[int]:
    """Returns the steps of the checkpoints on disk, oldest first."""
    return sorted(self._manager.all_steps())

  def restore(
    self, abstract: TrainState
  ) -> tuple[TrainState, dict[str, Any]] | None:
    """Returns the newest whole (state, data), or None where none was saved.

    A checkpoint that cannot be read is set aside as `damaged-STEP` and the one
    before it is taken.

    Args:
      abstract: shapes, dtypes and shardings to restore to.

    Raises:
      UserError: checkpoints exist and none of them is whole.
    """
    damaged = []
    for step in reversed(self.steps()):
      try:
        restored = self._restore_step(step, abstract)
      except Exception as error:  # Whatever the file system made of the bytes.
        logging.warning(
          "checkpoint %s is damaged (%s); trying the one before it",
          self._directory / str(step),
          str(error).strip().splitlines()[0][:200],
        )
        damaged.append(step)
      else:
        self._set_aside(damaged)
        return restored
    if damaged:
      raise UserError(
        f"no checkpoint in {self._directory} can be read (tried steps "
        f"{', '.join(map(str, damaged))}): restore one from a copy, or start "
        "with another --workdir"
      )
    return None

  def _restore_step(self, step, abstract):
    items = _items(abstract)
    asked = {k: ocp.args.StandardRestore(v) for k, v in items.items()}
    restored = self._manager.restore(
      step, args=ocp.args.Composite(**asked, data=ocp.args.JsonRestore())
    )
    data = restored["data"]
    state = TrainState(**_fields({name: restored[name] for name in items}))
    if int(_fingerprint(state)) != data["fingerprint"]:
      raise ValueError("its numbers are not those that were saved")
    return state, data

  def _set_aside(self, damaged: list[int]) -> None:
    """Renames the damaged checkpoints, whose steps will be saved again."""
    if not damaged:
      return
    if jax.process_index() == 0:
      for step in damaged:
        target = self._directory.parent / f"damaged-{step}"
        while target.exists():  # By an earlier start of this run.
          target = target.with_name(f"{target.name}-again")
        (self._directory / str(step)).rename(target)
    processes.wait_for_all("damaged checkpoints are set aside")
    self._manager.reload()

  def wait(self) -> None:
    """Returns when everything saved so far is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for pending saves and lets go of the directory."""
    self._manager.close()


@jax.jit
def _fingerprint(state: Any) -> jax.Array:
  """Returns the sum of all bits, read as whole numbers, modulo 2**32.

  The files of the arrays carry no checksum, so a flipped bit on disk would pass
  for a parameter; no single one leaves this sum as it was.
  """
  total = jnp.zeros((), jnp.uint32)
  for leaf in jax.tree.leaves(state):
    unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(leaf, unsigned)
    total += bits.astype(jnp.uint32).sum(dtype=jnp.uint32)
  return total


def _items(state: TrainState) -> dict[str, Any]:
  """Returns the items of a checkpoint, but for `data`: a tree for each."""
  items = {
    "params": state.params,
    "optimizer": {"step": state.step, "opt_state": state.opt_state},
    "ema": state.ema,
    "carry": state.carry,
  }
  return {name: tree for name, tree in items.items() if tree is not None}


def _fields(items: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what `_items` was made of, by the names in `TrainState`."""
  fields = dict(items)
  return {**fields.pop("optimizer"), **fields}


def read_any(
  folder: epath.Path, mesh: Mesh
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns state and data of a checkpoint, whatever config it is of.

  Args:
    folder: `DIR/checkpoints/STEP`.
    mesh: where the arrays are laid out, by `sharding.state_sharding`.

  Returns:
    ({path: array} with the paths of the `TrainState` that was saved, data).

  Raises:
    UserError: it holds parameters alone, or is damaged.
  """
  names = [
    n for n in ("params", "optimizer", "ema", "carry") if (folder / n).is_dir()
  ]
  if "optimizer" not in names:
    raise UserError(f"{folder}: holds no optimizer state, parameters at most")
  try:
    items = {name: read_item(folder / name, mesh) for name in names}
    data = json.loads((folder / "data" / "metadata").read_text())
    state = flatten(_fields(items))
    whole = int(_fingerprint(state)) == data["fingerprint"]
  except Exception as error:  # As many kinds as there are damages.
    reason = f"{type(error).__name__}: {str(error).strip()[:200]!r}"
    raise UserError(f"{folder}: is damaged ({reason})") from error
  if not whole:
    raise UserError(f"{folder}: is damaged (its numbers are not those saved)")
  return state, data


def read_item(folder: epath.Path, mesh: Mesh) -> Any:
  """Returns an item as nested dicts and lists, as its metadata say."""
  with ocp.StandardCheckpointer() as checkpointer:
    saved = checkpointer.metadata(folder).item_metadata.tree
    return checkpointer.restore(folder, placed(saved, mesh))


def restore_params(
  folder: epath.PathLike, abstract: Any, *, beside: Collection[str] = ()
) -> Any:
  """Returns the parameters of the checkpoint `DIR/checkpoints/STEP`.

  Args:
    folder: the checkpoint's folder, ending in its step.
    abstract: shapes, dtypes and shardings of the parameters.
    beside: terms of the loss, whose own parameters are left unread.

  Returns:
    Their moving average where the checkpoint has one: that is what is
    evaluated and exported.

  Raises:
    UserError: there is no checkpoint of such parameters in `folder`, or it is
      damaged, or has numbers that are not finite.
  """
  folder = epath.Path(folder)
  if (folder / "ema").is_dir():
    logging.warning("%s: the weights are their moving average", folder)
    folder /= "ema"
  else:
    folder /= "params"
  if not folder.is_dir():
    raise UserError(
      f"--checkpoint: {folder.parent} is not a checkpoint: it holds no params"
    )
  try:
    params = _restore_some(folder, abstract, beside)
  # Each kind of damage raises another, from JSON's to a bare Exception.
  except Exception as error:
    reason = str(error).strip().splitlines()[0][:200]
    raise UserError(
      f"--checkpoint: {folder.parent} cannot be read: it is damaged, or of "
      f"another model ({type(error).__name__}: {reason})"
    ) from error
  finite = jax.jit(
    lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)
  )
  for path, good in jax.tree_util.tree_leaves_with_path(finite(params)):
    if not good:
      raise UserError(
        f"--checkpoint: {folder.parent}: {path_string(path)} holds numbers "
        "that are not finite"
      )
  return params


def _restore_some(
  folder: epath.Path, abstract: Any, beside: Collection[str]
) -> Any:
  """Returns an item of a checkpoint without some of its top names."""
  with ocp.StandardCheckpointer() as checkpointer:
    if not beside:
      return checkpointer.restore(folder, abstract)
    saved = checkpointer.metadata(folder).item_metadata.tree
  left_out = saved.keys() & set(beside)
  rest = {name: tree for name, tree in saved.items() if name not in left_out}
  differing = flatten(rest).keys() ^ flatten(abstract).keys()
  if differing:
    raise ValueError(f"other parameters: {', '.join(sorted(differing)[:5])}")
  arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
  with ocp.PyTreeCheckpointer() as checkpointer:
    return checkpointer.restore(
      folder,
      args=ocp.args.PyTreeRestore(
        item=abstract, restore_args=arguments, partial_restore=True
      ),
    )


def save_params(folder: epath.PathLike, params: Any) -> None:
  """Writes parameters alone, as `restore_params` reads them.

  They are not compressed: it makes float32 a tenth smaller, and reading takes
  twice as long (docs/performance.md).

  Args:
    folder: `DIR/checkpoints/STEP`, without parameters.
    params: the parameters.
  """
  handler = ocp.PyTreeCheckpointHandler(use_compression=False)
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save(
      epath.Path(folder) / "params", args=ocp.args.PyTreeSave(params)
    )
