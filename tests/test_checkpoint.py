"""What is saved comes back, and what is damaged is not believed."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs

from big_siglip import checkpoint, sharding
from big_siglip.checkpoint import Checkpoints, restore_params
from big_siglip.errors import UserError
from big_siglip.train_step import TrainState


def _state(step, mesh=None):
  """A state with every kind of leaf; its numbers tell the step."""
  rng = np.random.default_rng(step)
  params = {
    "blocks": {
      "attention": {
        "query": {"kernel": rng.normal(size=(3, 8, 4, 2)).astype(np.float32)}
      }
    },
    "head": {"kernel": rng.normal(size=(8, 16)).astype(np.float32)},
    "logit_scale": np.float32(rng.normal()),
  }
  opt_state = optax.adam(0.1, mu_dtype=jnp.bfloat16).init(params)
  opt_state = jax.tree.map(
    lambda x: np.asarray(rng.normal(size=np.shape(x)) * 9).astype(x.dtype),
    opt_state,
  )
  state = TrainState(np.int32(step), params, opt_state)
  mesh = mesh or sharding.make_mesh()
  return jax.device_put(state, sharding.state_sharding(state, mesh))


def _abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


def _save(folder, *steps, keep=2):
  checkpoints = Checkpoints(folder / "checkpoints", keep=keep)
  for step in steps:
    checkpoints.save(_state(step), {"next_batch": step})
  checkpoints.close()


def _restore(folder, mesh=None):
  """Returns (state, data, what was asked for) of the newest checkpoint."""
  checkpoints = Checkpoints(folder / "checkpoints", keep=2)
  abstract = _abstract(_state(0, mesh))
  restored = checkpoints.restore(abstract)
  checkpoints.close()
  return None if restored is None else (*restored, abstract)


def _assert_is_step(restored, step):
  state, data, _ = restored
  runs.assert_same(runs.flatten(state), runs.flatten(_state(step)))
  assert data["next_batch"] == step


def test_nothing_saved_is_none(tmp_path):
  assert _restore(tmp_path) is None


def test_the_newest_comes_back_bit_for_bit(tmp_path):
  _save(tmp_path, 3, 5)
  _assert_is_step(_restore(tmp_path), 5)


def test_the_newest_two_are_kept(tmp_path):
  _save(tmp_path, 1, 2, 3, 4)
  names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
  assert names == {"3", "4"}


def test_a_step_that_is_saved_is_not_saved_again(tmp_path):
  checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
  checkpoints.save(_state(4), {"next_batch": 4})
  checkpoints.save(_state(4), {"next_batch": 99})
  checkpoints.wait()
  assert checkpoints.steps() == [4]
  checkpoints.close()
  _assert_is_step(_restore(tmp_path), 4)


def test_a_state_goes_from_one_mesh_to_another(tmp_path):
  _save(tmp_path, 7)
  restored = _restore(tmp_path, sharding.make_mesh(data=1, fsdp=4, tensor=2))
  _assert_is_step(restored, 7)
  state, _, abstract = restored
  specs = [leaf.sharding.spec for leaf in jax.tree.leaves(state)]
  assert specs == [leaf.sharding.spec for leaf in jax.tree.leaves(abstract)]
  assert not state.params["head"]["kernel"].sharding.is_fully_replicated


def _items(folder, step):
  return {p.name for p in (folder / "checkpoints" / str(step)).iterdir()}


def test_an_average_and_a_carry_are_items_of_their_own(tmp_path):
  _save(tmp_path, 1)
  plain = _state(1)
  full = plain.replace(
    ema=_state(2).params, carry={"teacher": {"centre": plain.params["head"]}}
  )
  folder = tmp_path / "full"
  checkpoints = Checkpoints(folder / "checkpoints", keep=2)
  checkpoints.save(full, {"next_batch": 1})
  checkpoints.wait()
  state, data = checkpoints.restore(_abstract(full))
  checkpoints.close()
  runs.assert_same(runs.flatten(state), runs.flatten(full))
  assert {"params", "optimizer", "data"} <= _items(tmp_path, 1)
  assert _items(folder, 1) - _items(tmp_path, 1) == {"ema", "carry"}
  # The average is what a model is evaluated and exported with.
  params = restore_params(folder / "checkpoints" / "1", _abstract(full.params))
  runs.assert_same(runs.flatten(params), runs.flatten(full.ema))


def test_a_state_is_read_without_knowing_its_config(tmp_path):
  mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
  _save(tmp_path, 3)
  folder = checkpoint.epath.Path(tmp_path) / "checkpoints" / "3"
  state, data = checkpoint.read_any(folder, mesh)
  runs.assert_same(runs.flatten(state), runs.flatten(_state(3)))
  assert not state["params/head/kernel"].sharding.is_fully_replicated
  assert data["next_batch"] == 3
  for damage in ("no position", "truncated", "flipped number"):
    copy = tmp_path / damage
    shutil.copytree(folder, copy)
    DAMAGES[damage](copy)
    with pytest.raises(UserError, match=f"{damage}: is damaged") as error:
      checkpoint.read_any(checkpoint.epath.Path(copy), mesh)
    assert len(str(error.value).splitlines()) == 1


def _remove(*names):
  return lambda folder: shutil.rmtree(folder.joinpath(*names))


def _truncate(folder):
  for file in (folder / "params" / "d").iterdir():
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flip_the_index(folder):
  file = folder / "optimizer" / "manifest.ocdbt"
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(bytes(data))


def _flip_a_number(folder):
  # Raw, uncompressed numbers are what no file format checks.
  file = max(
    (folder / "params" / "d").iterdir(), key=lambda f: f.stat().st_size
  )
  data = bytearray(file.read_bytes())
  kernel = np.asarray(_state(2).params["head"]["kernel"])
  place = data.find(kernel[:1].tobytes())
  if place < 0:  # Compressed: any byte will do.
    place = len(data) // 2
  data[place] ^= 1
  file.write_bytes(bytes(data))


def _empty(folder):
  for path in folder.iterdir():
    shutil.rmtree(path) if path.is_dir() else path.unlink()


DAMAGES = {
  "no arrays": _remove("params", "d"),
  "no optimizer": _remove("optimizer"),
  "no position": _remove("data"),
  "truncated": _truncate,
  "flipped index": _flip_the_index,
  "flipped number": _flip_a_number,
  "empty": _empty,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_set_aside_for_the_one_before(
  tmp_path, caplog, damage
):
  _save(tmp_path, 1, 2)
  DAMAGES[damage](tmp_path / "checkpoints" / "2")
  _assert_is_step(_restore(tmp_path), 1)
  (warning,) = [r for r in caplog.messages if "is damaged" in r]
  assert "checkpoints/2 is damaged" in warning
  assert len(warning.splitlines()) == 1
  assert (tmp_path / "damaged-2").is_dir()
  assert not (tmp_path / "checkpoints" / "2").exists()


def test_a_step_can_be_damaged_twice(tmp_path):
  _save(tmp_path, 1, 2)
  (tmp_path / "damaged-2").mkdir()
  (tmp_path / "damaged-2" / "kept").touch()
  _truncate(tmp_path / "checkpoints" / "2")
  _assert_is_step(_restore(tmp_path), 1)
  assert (tmp_path / "damaged-2" / "kept").exists()
  assert (tmp_path / "damaged-2-again" / "params").is_dir()
  _save(tmp_path, 2)
  _assert_is_step(_restore(tmp_path), 2)


def test_all_damaged_is_an_error_that_moves_nothing(tmp_path):
  _save(tmp_path, 1, 2)
  for step in "12":
    _truncate(tmp_path / "checkpoints" / step)
  with pytest.raises(UserError, match=r"tried steps 2, 1\)") as error:
    _restore(tmp_path)
  assert len(str(error.value).splitlines()) == 1
  assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}


def test_what_a_killed_save_left_is_no_checkpoint(tmp_path):
  _save(tmp_path, 1, 2)
  saved = tmp_path / "checkpoints" / "2"
  saved.rename(saved.with_name("2.orbax-checkpoint-tmp"))
  checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
  _assert_is_step((*checkpoints.restore(_abstract(_state(0))), None), 1)
  # A thread removes it; a save waits for that thread.
  checkpoints.save(_state(3), {"next_batch": 3})
  checkpoints.close()
  assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"1", "3"}


def test_parameters_come_back_alone_and_on_another_mesh(tmp_path):
  _save(tmp_path, 3)
  mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
  abstract = _abstract(_state(0, mesh).params)
  params = restore_params(tmp_path / "checkpoints" / "3", abstract)
  runs.assert_same(runs.flatten(params), runs.flatten(_state(3).params))


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path):
  with pytest.raises(UserError, match=f"{tmp_path} is not a checkpoint"):
    restore_params(tmp_path, {})
