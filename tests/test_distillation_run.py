"""Runs with self-distillation: started, gone on with, planned, exported."""

import shutil

import distillation_cases as cases
from etils import epath
import jax
import numpy as np
import programs
import pytest
import runs

from big_siglip import build, command_line
from big_siglip.checkpoint import Checkpoints
from big_siglip.errors import UserError
from big_siglip.objectives import costs
from big_siglip.plan import dry_run
from big_siglip.trained import first_state, stages, teachers
from configs import base, terms

NAME = "self"


def _config(**section):
  config = runs.config(total_steps=20).unlock()
  config.terms = {NAME: cases.section(**section)}
  config.evals = {}
  return config


def test_a_stage_starts_the_teacher_from_what_it_takes_over(short_run):
  config = _config()
  config.init.path, config.init.state = str(short_run), "all"
  mesh = build.mesh(config)
  program = build.program(config, mesh)
  stage = stages.go_on(config, program.init(), mesh, program.start_from)
  state = jax.device_get(stage.state)
  before, _ = runs.final_state(short_run)
  params, carry = runs.flatten(state.params), state.carry[NAME]
  teacher = runs.flatten(carry["teacher"])
  assert any(path.startswith("image/") for path in teacher)
  for path, value in teacher.items():
    np.testing.assert_array_equal(value, params[path], err_msg=path)
    if path.startswith("image/"):
      np.testing.assert_array_equal(value, before[f"params/{path}"])
  assert carry["steps"] == 0 and int(state.step) == 6
  # Its own count in Adam: it is younger.
  began = stage.data["began"]
  assert {path.split("/")[0] for path in began} == {NAME}
  assert set(began.values()) == {6}
  assert any("parameters fresh: self/" in line for line in stage.report)


def test_plans_tell_what_a_term_has_and_carries(capsys):
  config = _config()
  mesh = build.mesh(config)
  dry_run.print_plan(config, mesh)
  said = capsys.readouterr().out
  state = build.program(config, mesh).abstract_state
  for tree, name in (
    (state.params[NAME], "of self"),
    (state.carry[NAME], "carried by self"),
  ):
    count = sum(x.size for x in jax.tree.leaves(tree))
    assert f"{name:20} {count:,}" in said
  assert "of the optimizer" in said
  lines = [line for line in said.splitlines() if "% of all" in line]
  assert [line[:12] for line in lines] == ["FLOPs a step", "and of self "]
  amounts = [float(line[20:].split(",")[0]) for line in lines]
  shares = [int(line.split(", ")[1].split("%")[0]) for line in lines]
  expected = 100 * np.array(amounts) / sum(amounts)
  np.testing.assert_allclose(shares, expected, rtol=0, atol=1)
  assert "self/local/prototypes" in said and "self/mask_token" in said


def test_what_a_step_costs_is_what_was_counted_by_hand():
  """For B/16 at 256 pixels: 8 small crops 50.4 GF, an image 46.8, forward."""
  model = base.get_config().model
  model.image.image_size = 256
  small, whole = 50.4e9, 46.8e9
  layers = 2 * (768 * 2048 + 2048**2 + 2048 * 256)
  scores = 2 * 256 * 65_536
  rows = 8 + 128, 1 + 128  # Of student and teacher.
  expected = 3 * (small + whole) + whole
  expected += (3 * rows[0] + rows[1]) * (layers + scores)
  found = costs.distillation_flops(terms.distillation(), model)
  np.testing.assert_allclose(found, expected, rtol=2e-3)
  local = terms.distillation(masked=0.0)
  rest = found - costs.distillation_flops(local, model)
  expected = 3 * whole + 4 * 128 * (layers + scores)
  np.testing.assert_allclose(rest, expected, rtol=2e-3)


def test_prototypes_that_memory_cannot_hold_are_told_before_they_are_made():
  config = _config(prototypes=2**36)
  program = build.program(config, build.mesh(config))
  with pytest.raises(UserError) as error:
    first_state.check_memory(config, program.abstract_state)
  said = str(error.value)
  assert said.startswith(
    "config.terms.self.prototypes=68719476736: memory cannot hold them: the "
    "train state takes "
  )
  assert "\n" not in said
  small = build.program(_config(), build.mesh(config))
  first_state.check_memory(config, small.abstract_state)


def test_a_run_without_a_teacher_has_none_to_take(short_run):
  checkpoint = epath.Path(short_run) / "checkpoints" / "6"
  with pytest.raises(UserError, match="--weights=teacher: .*6 has none"):
    teachers.choose("teacher", checkpoint, _config(), dict)
  assert teachers.choose("trained", checkpoint, _config(), dict) is dict


CONFIG = """
from configs import digits, terms

def get_config():
  c = digits.get_config()
  c.terms.self = terms.distillation(
    local_count=2, local_size=8, hidden=16, bottleneck=8, prototypes=32,
    frozen_steps=1, warmup_steps=2,
  )
  return c
"""


MAP = {"model__image__pooling": "map"}  # Which others know.


def _train(file, workdir, **changes):
  status, output, error = programs.call(
    "main.py",
    f"--config={file}",
    f"--workdir={workdir}",
    *runs.overrides(**MAP, **{"evals__test__every": 100, **changes}),
  )
  assert status == 0, output + error
  return output + error


def _state(file, workdir):
  config = command_line.load_config(str(file), runs.overrides(**MAP))
  program = build.program(config, build.mesh(config))
  checkpoints = Checkpoints(workdir / "checkpoints", keep=2)
  state, _ = checkpoints.restore(program.abstract_state)
  checkpoints.close()
  return runs.flatten(state)


@pytest.mark.slow
def test_a_run_is_killed_and_goes_on_bit_for_bit_and_gives_its_teacher(
  tmp_path,
):
  file = tmp_path / "self.py"
  file.write_text(CONFIG)
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  steps = dict(total_steps=4, checkpoint__every=2)
  _train(file, whole, **steps)
  shutil.copytree(whole, parts)
  shutil.rmtree(parts / "checkpoints" / "4")
  assert "resuming from step 2" in _train(file, parts, **steps)
  found, wanted = _state(file, parts), _state(file, whole)
  runs.assert_same(found, wanted)
  teacher = f"carry/{NAME}/teacher/image/encoder/norm/scale"
  assert not np.array_equal(
    found[teacher], found["params/image/encoder/norm/scale"]
  )
  exports = {}
  for weights in ("trained", "teacher"):
    output = tmp_path / f"{weights}.npz"
    status, *said = programs.call(
      "tools/export_weights.py",
      f"--checkpoint={whole}",
      "--format=big_vision",
      f"--output={output}",
      f"--weights={weights}",
    )
    assert status == 0, said
    exports[weights] = dict(np.load(output))
  one, two = exports["trained"], exports["teacher"]
  assert one.keys() == two.keys()
  assert not any(NAME in name for name in one)
  scale = "params/img/Transformer/encoder_norm/scale"
  np.testing.assert_array_equal(
    one[scale], found["params/image/encoder/norm/scale"]
  )
  np.testing.assert_array_equal(two[scale], found[teacher])
  for name in one:
    if not name.startswith("params/img/"):
      np.testing.assert_array_equal(one[name], two[name])
