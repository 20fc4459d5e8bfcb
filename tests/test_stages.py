"""A run that goes on from another one's state, as it is or changed."""

import shutil
import signal

import distillation_cases
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest
import runs

from big_siglip import build, loop, metrics, sharding
from big_siglip.checkpoint import Checkpoints
from big_siglip.errors import UserError
from big_siglip.run import workdir
from big_siglip.trained import stages

HALF = 4
CONSTANT = {
  "optimizer__schedule": "constant",
  "optimizer__warmup_steps": 0,
  "checkpoint__every": 2,
  "log_every": 1,
}


@pytest.fixture(autouse=True, scope="module")
def _two_devices():
  """Two of the eight will do, and take less time."""
  mesh = build.mesh
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(build, "mesh", lambda c: mesh(c, jax.devices()[:2]))
    yield


@pytest.fixture(autouse=True)
def _own_signals():
  """Gives back the handlers that the trainer replaces."""
  numbers = (signal.SIGINT, signal.SIGTERM)
  handlers = [signal.getsignal(number) for number in numbers]
  yield
  for number, handler in zip(numbers, handlers, strict=True):
    signal.signal(number, handler)


def _config(path=None, *, decay=None, rules=(), **changes):
  """Returns a config; one of a stage if `path` is given."""
  config = runs.config(**{**CONSTANT, **changes})
  with config.unlocked():
    config.init.path = str(path) if path else None
    config.init.state = "all" if path else "params"
    config.ema = ConfigDict({"decay": decay})
  config.optimizer.rules = rules
  config.evals = {}
  return config


def _final(folder, config):
  """Returns ({path: array} of the newest checkpoint, what lies beside it)."""
  program = build.program(config, build.mesh(config))
  checkpoints = Checkpoints(folder / "checkpoints", keep=2)
  state, data = checkpoints.restore(program.abstract_state)
  checkpoints.close()
  return runs.flatten(state), data


def _logged(folder):
  clock = ("examples_per_second", "data_wait", "mfu")
  return [
    {k: v for k, v in line.items() if k not in clock}
    for line in metrics.read_metrics(folder)
  ]


@pytest.fixture(scope="module")
def half(tmp_path_factory):
  """The folder of a finished run of `HALF` steps, with an average."""
  folder = tmp_path_factory.mktemp("stages") / "half"
  loop.train(_config(decay=0.9, total_steps=HALF), str(folder))
  return folder


def test_a_finished_run_trains_for_longer_as_if_it_had_never_ended(
  half, tmp_path, capsys
):
  config = _config(decay=0.9, total_steps=2 * HALF)
  loop.train(config, str(tmp_path / "whole"))
  capsys.readouterr()
  longer = _config(half, decay=0.9, total_steps=2 * HALF)
  loop.train(longer, str(tmp_path / "longer"))
  said = capsys.readouterr().out
  state, data = _final(tmp_path / "longer", longer)
  expected, expected_data = _final(tmp_path / "whole", config)
  assert int(state["step"]) == 2 * HALF
  assert any(path.startswith("ema/") for path in state)
  runs.assert_same(state, expected)
  assert data == expected_data
  assert _logged(tmp_path / "longer") == _logged(tmp_path / "whole")[HALF:]
  assert f"going on from {half}/checkpoints/4, after step 4" in said
  assert "config.total_steps: 4 -> 8" in said
  assert f"data: goes on at batch {HALF}\n" in said
  assert "fresh" not in said and "resampled" not in said
  last = said.splitlines()[-1]
  assert last.startswith("to train for longer: --config.init.path=")


CHANGED = {
  "model__image__image_size": 32,
  "model__text__length": 20,
  "batch_size": 32,
  "microbatch": 16,
  "total_steps": 9,
  "checkpoint__keep": 3,
  "optimizer__learning_rate": 5e-4,
  "mesh__fsdp": 2,
}


@pytest.mark.slow
def test_a_changed_stage_that_is_killed_ends_as_one_that_is_not(
  half, tmp_path, capsys
):
  source = tmp_path / "source"
  shutil.copytree(half, source)
  config = _config(source, decay=0.9, **CHANGED)
  loop.train(config, str(tmp_path / "whole"))
  said = capsys.readouterr().out
  positions = "image/position_embedding, text/position_embedding"
  assert f"parameters resampled: {positions}" in said
  assert f"moments fresh: {positions}" in said
  assert "data: goes on at batch 2 = 64 examples seen / config.batch" in said

  # As if killed after step 7; what it came from has been deleted since.
  killed = tmp_path / "killed"
  shutil.copytree(tmp_path / "whole", killed)
  for step in (8, 9):
    shutil.rmtree(killed / "checkpoints" / str(step))
  shutil.rmtree(source)
  loop.train(config, str(killed))
  assert "resuming from step 6\n" in capsys.readouterr().out

  state, data = _final(killed, config)
  expected, expected_data = _final(tmp_path / "whole", config)
  runs.assert_same(state, expected)
  assert data == expected_data
  assert data["next_batch"] == 2 + 5
  assert set(data["began"].values()) == {HALF}
  assert sorted(data["began"]) == positions.split(", ")
  assert _logged(killed) == _logged(tmp_path / "whole")


def _state(config, seed, step=0):
  """Returns a state with numbers in every leaf, and its mesh."""
  config.mesh.fsdp = 2
  mesh = build.mesh(config)
  rng = np.random.default_rng(seed)

  def fill(path, leaf):
    name = sharding.path_string(path)
    if name == "step" or name.endswith("/count"):
      value = np.full(leaf.shape, step)
    else:
      value = rng.uniform(0.1, 1, leaf.shape)
    # A copy, since a device of this machine would share numpy's buffer.
    return jax.device_put(jnp.array(value.astype(leaf.dtype)), leaf.sharding)

  abstract = build.program(config, mesh).abstract_state
  return jax.tree_util.tree_map_with_path(fill, abstract), mesh


def _leave(folder, config, seed=0, **data):
  """Writes a run's folder with one checkpoint; returns its state, flat."""
  config.total_steps = HALF
  state, _ = _state(config, seed, HALF)
  workdir.claim(str(folder), config)
  checkpoints = Checkpoints(folder / "checkpoints", keep=2)
  checkpoints.save(state, {"next_batch": HALF, **data})
  checkpoints.close()
  return runs.flatten(state)


def _go_on(config):
  """Returns the stage, its state and one of a random start, both flat."""
  config.total_steps = 99
  fresh, mesh = _state(config, seed=99)
  stage = stages.go_on(
    config, fresh, mesh, build.program(config, mesh).start_from
  )
  for leaf, wanted in zip(
    jax.tree.leaves(stage.state), jax.tree.leaves(fresh), strict=True
  ):
    assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)
    assert leaf.sharding == wanted.sharding
  pointers = [
    leaf.addressable_data(0).unsafe_buffer_pointer()
    for leaf in jax.tree.leaves(stage.state)
  ]
  assert len(set(pointers)) == len(pointers), "a step donates each, once"
  return stage, runs.flatten(stage.state), runs.flatten(fresh)


def _moments(state, of):
  return {
    path: leaf
    for path, leaf in state.items()
    if path.startswith("opt_state/") and path.endswith(f"/{of}")
  }


def _assert_counts(state, moments, schedule):
  *own, last = [leaf for path, leaf in state.items() if path.endswith("/count")]
  assert {int(count) for count in own} == {moments}
  assert int(last) == schedule


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion"])
def test_what_a_rule_frees_begins_and_what_it_freezes_ends(tmp_path, name):
  rule = {"optimizer__name": name, "optimizer__weight_decay": 0.0}
  old = _leave(
    tmp_path / "a",
    _config(rules=(("image/.*", {"freeze": True}),), **rule),
    began={"logit_scale": 3},
    skipped={"image": 2},
    skipped_steps=1,
  )
  # The other multipliers move the schedule to another place in the chain.
  rules = (
    ("text/.*", {"freeze": True}),
    ("logit_bias", {"learning_rate": 2.0}),
  )
  stage, state, random = _go_on(_config(tmp_path / "a", rules=rules, **rule))
  for path, leaf in old.items():
    if path.startswith("params/"):
      np.testing.assert_array_equal(state[path], leaf)
  for scalar in ("logit_scale", "logit_bias"):
    runs.assert_same(_moments(state, scalar), _moments(old, scalar))
  fresh = _moments(state, "image/position_embedding")
  assert fresh
  runs.assert_same(fresh, _moments(random, "image/position_embedding"))
  assert not _moments(state, "text/position_embedding")
  _assert_counts(state, HALF, HALF)
  began = stage.data["began"]
  images = {p.removeprefix("params/") for p in old if p.startswith("params/im")}
  assert began == {**dict.fromkeys(images, HALF), "logit_scale": 3}
  assert stage.data["skipped"] == {"image": 2}
  assert stage.data["skipped_steps"] == 1
  report = "\n".join(stage.report)
  assert "moments taken over: logit_bias, logit_scale\n" in report
  assert "moments fresh: image/encoder (18), image/patch_embed" in report
  assert "moments left behind: text/encoder (18), text/head (2)" in report


@pytest.mark.parametrize(
  ("scan", "name"),
  [
    (True, "adamw"),
    (False, "adafactor"),
    pytest.param(True, "adafactor", marks=pytest.mark.slow),
    pytest.param(False, "adamw", marks=pytest.mark.slow),
  ],
)
def test_blocks_and_their_moments_may_be_stacked_or_not(tmp_path, name, scan):
  sizes = {"model__image__depth": 2, "model__text__depth": 2}
  sizes["optimizer__name"] = name
  late = "image/encoder/blocks/mlp/up/kernel"
  names = (
    [late]
    if not scan
    else [late.replace("blocks", f"block_{index}") for index in range(2)]
  )
  began = dict.fromkeys(names, 2)
  old = _leave(
    tmp_path / "a", _config(model__scan=not scan, **sizes), began=began
  )
  stage, state, _ = _go_on(_config(tmp_path / "a", model__scan=scan, **sizes))
  one, both = (old, state) if scan else (state, old)
  for path, leaf in both.items():
    for index in range(2) if "/blocks/" in path else ():
      single = one[path.replace("/blocks/", f"/block_{index}/")]
      if leaf.shape != (1,):  # Adafactor's "nothing here".
        np.testing.assert_array_equal(leaf[index], single, err_msg=path)
  assert "fresh" not in "\n".join(stage.report)
  now = {name.replace("block_0", "blocks") for name in stage.data["began"]}
  assert late in now and len(stage.data["began"]) == (1 if scan else 2)


def test_another_rule_starts_all_moments_and_keeps_the_schedule(tmp_path):
  old = _leave(tmp_path / "a", _config())
  stage, state, fresh = _go_on(
    _config(tmp_path / "a", optimizer__name="lion", optimizer__b2=0.99)
  )
  _assert_counts(state, 0, HALF)
  path = "text/head/kernel"
  np.testing.assert_array_equal(state[f"params/{path}"], old[f"params/{path}"])
  runs.assert_same(_moments(state, path), _moments(fresh, path))
  assert "began" not in stage.data


def test_an_average_begins_goes_on_and_ends(tmp_path):
  _leave(tmp_path / "a", _config())
  _, state, _ = _go_on(_config(tmp_path / "a", decay=0.9))
  for path, leaf in state.items():
    if path.startswith("ema/"):
      weights = state[path.replace("ema/", "params/")]
      np.testing.assert_array_equal(leaf, weights)
  old = _leave(tmp_path / "b", _config(decay=0.9), seed=1)
  larger = _config(tmp_path / "b", decay=0.9, model__image__image_size=32)
  _, state, _ = _go_on(larger)
  path = "ema/image/position_embedding"
  corners = [0, 3], [0, 15]
  np.testing.assert_allclose(state[path][corners[1]], old[path][corners[0]])
  assert not np.array_equal(state[path], state[path.replace("ema", "params")])
  _, state, _ = _go_on(_config(tmp_path / "b"))
  assert not any(path.startswith("ema/") for path in state)
  np.testing.assert_array_equal(
    state["params/logit_bias"], old["params/logit_bias"]
  )


LORA = {"model__lora__rank": 2}
MAP = {"model__image__pooling": "map"}


def test_an_adaptation_goes_on_or_is_added_up(tmp_path):
  old = _leave(tmp_path / "a", _config(**LORA))
  _, state, _ = _go_on(_config(tmp_path / "a", **LORA))
  runs.assert_same(state, old)
  stage, state, _ = _go_on(_config(tmp_path / "a"))
  kernel = "text.encoder.block_0.attention.query.kernel"
  path = f"params/{kernel.replace('.', '/')}"
  a, b = (old[f"params/lora/{kernel}/{name}"] for name in "ab")
  share = _config(**LORA).model.lora.alpha / 2
  summed = old[path] + share * (a @ b).reshape(old[path].shape)
  np.testing.assert_allclose(state[path], summed, rtol=1e-5)
  assert "moments left behind: lora/" in "\n".join(stage.report)


@pytest.mark.parametrize("lora", [False, True])
def test_a_teacher_goes_on_in_another_layout(tmp_path, lora):
  def config(path=None, **changes):
    made = _config(path, model__image__depth=2, **MAP, **changes).unlock()
    made.terms = {"self": distillation_cases.section(masked=0.0)}
    return made

  changes = LORA if lora else {}
  old = _leave(tmp_path / "a", config(model__scan=not lora, **changes))
  stage, state, _ = _go_on(config(tmp_path / "a", model__scan=lora))
  root = "carry/self/teacher/image/encoder"
  one, both = (old, state) if lora else (state, old)
  kernel, share = "attention/query/kernel", 0
  for index in range(2):
    single = one[f"{root}/block_{index}/{kernel}"]
    if lora:
      name = f"image.encoder.block_{index}.{kernel.replace('/', '.')}"
      a, b = (one[f"carry/self/teacher/lora/{name}/{x}"] for x in "ab")
      share = config(**LORA).model.lora.alpha / 2 * (a @ b)
      share = share.reshape(single.shape)
      assert np.abs(share).max() > 1e-3
    np.testing.assert_allclose(
      both[f"{root}/blocks/{kernel}"][index], single + share, rtol=1e-5
    )
  report = "\n".join(stage.report)
  assert "carried by terms fresh" not in report
  assert "carried by terms taken over: self/" in report
  assert "carried by terms left" not in report


def test_what_is_new_starts_and_what_has_no_place_stays_behind(tmp_path):
  old = _leave(tmp_path / "a", _config())
  config = _config(tmp_path / "a", model__image__pooling="map")
  config.init.towers = "image"  # As the first stage's may have been.
  config.model.text.head = False
  stage, state, random = _go_on(config)
  new = {path for path in state if "image/pool" in path}
  assert new
  for path, leaf in state.items():
    source = random if path in new else old
    np.testing.assert_array_equal(leaf, source[path], err_msg=path)
  names = {p.removeprefix("params/") for p in new if p.startswith("params/")}
  assert stage.data["began"] == dict.fromkeys(names, HALF)
  report = "\n".join(stage.report)
  assert f"parameters fresh: image/pool ({len(names)})\n" in report
  assert "parameters left behind: text/head/bias, text/head/kernel" in report
  assert "moments left behind: text/head/bias, text/head/kernel" in report


def test_other_data_count_as_seen(tmp_path):
  _leave(tmp_path / "a", _config())
  stage, _, _ = _go_on(_config(tmp_path / "a", data__split="test"))
  assert stage.data["next_batch"] == HALF
  assert "  data: are others, or in another order" in "\n".join(stage.report)


def _damage(folder):
  file = max(
    (folder / "a/checkpoints/4/params/d").iterdir(),
    key=lambda f: f.stat().st_size,
  )
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(bytes(data))


def _strip(folder):
  shutil.rmtree(folder / "a/checkpoints/4/optimizer")


@pytest.mark.parametrize(
  ("change", "spoil", "said"),
  [
    ({"path": None}, None, r"config.init.path=None: must be set"),
    ({"path": "nowhere"}, None, "nowhere: no run with a checkpoint"),
    ({"path": "a/checkpoints/3"}, None, "a/checkpoints/3: no such checkpoint"),
    ({"total_steps": 4}, None, r"config.total_steps=4: must be above 4"),
    ({"model__text__mlp_dim": 96}, None, "mlp/up/kernel has shape"),
    ({}, _strip, "holds parameters alone, and config.init.state='all'"),
    ({}, _damage, "a/checkpoints/4: is damaged"),
  ],
)
def test_what_cannot_go_on_is_told(tmp_path, change, spoil, said):
  _leave(tmp_path / "a", _config())
  if spoil:
    spoil(tmp_path)
  path = change.pop("path", "a")
  config = _config(tmp_path / (path or "a"), **{"total_steps": 9, **change})
  if path is None:
    config.init.path = None
  with pytest.raises(UserError, match=said) as error:
    stages.go_on(config, *_state(config, seed=99), None)
  assert "config." in str(error.value) or "damaged" in str(error.value)


def test_more_steps_in_the_same_folder_are_told_how(tmp_path):
  workdir.claim(str(tmp_path / "run"), _config(total_steps=4))
  (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
  with pytest.raises(UserError, match="config.total_steps: 4 -> 8") as error:
    workdir.claim(str(tmp_path / "run"), _config(total_steps=8))
  flags = f"--config.init.path={tmp_path / 'run'} --config.init.state=all"
  assert flags in str(error.value)
