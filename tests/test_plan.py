"""Plans: on CPU devices whole, of TPUs what their compiler says (slow)."""

import functools
import json
import math
import sys

import jax
import numpy as np
import programs
import pytest
import runs

from big_siglip import build, losses, sharding
from big_siglip.errors import UserError
from big_siglip.plan import plan, topologies

KEYS = {
  "parameters",
  "state_bytes_per_chip",
  "peak_hbm_bytes_per_chip",
  "hbm_bytes_per_chip",
  "flops_per_step",
  "estimated_cycles_per_step",
  "estimated_seconds_per_step",
  "mfu",
  "collectives",
  "fits",
}


def _tiny(*arguments, run=programs.call, **changes):
  return run(
    "tools/plan.py",
    f"--config={runs.CONFIG}",
    *runs.overrides(**changes),
    *arguments,
  )


def test_a_plan_is_of_the_program_that_trains():
  config = runs.config(mesh__fsdp=2)
  made = plan.make_plan(config, "cpu:8")
  mesh = build.mesh(config)
  state = build.program(config, mesh).init()
  assert made.chips == 8
  assert made.steps == config.total_steps
  assert made.parameters == sum(
    math.prod(x.shape) for x in jax.tree.leaves(state.params)
  )
  first = mesh.devices.flat[0]
  assert made.state_bytes_per_chip == sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(state)
    for shard in leaf.addressable_shards
    if shard.device == first
  )
  assert made.peak_hbm_bytes_per_chip > made.state_bytes_per_chip
  assert made.fits
  assert made.collectives["collective-permute"]["count"] > 0
  assert made.estimated_cycles_per_step is None, "CPUs do not say"


def test_json_has_every_key():
  status, output, message = _tiny(
    "--topology=cpu:4", "--json", run=programs.start
  )
  assert status == 0, message
  answer = json.loads(output)
  assert answer.keys() >= KEYS
  assert answer["chips"] == 4
  assert "compiling for cpu:4 with jaxlib" in message


def test_what_does_not_fit_ends_with_3_and_says_by_how_much():
  status, output, message = _tiny("--topology=cpu:2", batch_size=2**27)
  assert status == 3
  assert "fits" in output
  *_, line = message.strip().splitlines()
  assert "does not fit: needs" in line and "more than" in line


def test_a_sweep_prints_every_try_and_the_best():
  status, output, message = _tiny(
    "--topology=cpu:4", "--sweep", "--remats=full,none", "--fsdps=1,3"
  )
  assert status == 0, message
  lines = output.splitlines()
  assert len([x for x in lines if x.startswith("batch_size=16 ")]) == 4
  assert len([x for x in lines if "must cover exactly the 4" in x]) == 2
  (best,) = (x for x in lines if x.startswith("best:"))
  assert "fsdp=1" in best


@pytest.mark.parametrize(
  ("topology", "changes", "said"),
  [
    ("v7:4x4", {}, "known: v4:(2x2x1|"),
    ("v5e:", {}, "known: v4:(2x2x1|"),
    ("cpu:0", {}, "known: v4:(2x2x1|"),
    (None, {}, "--topology=KIND:SHAPE must be given"),
    ("gpu:4", {}, "--topology=gpu:4: 0 GPUs are attached"),
    ("cpu:8", {"mesh__data": 3}, "must cover exactly the 8 devices"),
    ("cpu:8", {"microbatch": 12}, "config.microbatch=12: must divide"),
    ("cpu:8", {"loss__chunk_size": 3}, "config.loss.chunk_size=3: must divide"),
    ("cpu:8", {"model__remat": "some"}, "config.model.remat='some': must be"),
  ],
)
def test_a_mistake_is_one_line(topology, changes, said):
  flags = [f"--topology={topology}"] if topology else []
  assert said in _tiny(*flags, run=programs.said_in_one_line, **changes)


def test_without_libtpu_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "libtpu", None)
  with pytest.raises(UserError, match=r"pip install 'big_siglip\[tpu\]'"):
    topologies.describe("v5e:4x4")


@pytest.mark.slow
def test_an_unknown_shape_lists_the_known():
  pytest.importorskip("libtpu")
  message = _tiny("--topology=v5e:3x77", run=programs.said_in_one_line)
  assert "known: v5e:(1x1|2x2|" in message


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1"])
def test_a_tpu_plan_has_times(topology):
  pytest.importorskip("libtpu")
  status, output, message = _tiny(
    f"--topology={topology}", "--json", run=programs.start
  )
  assert status == 0, message
  answer = json.loads(output)
  assert answer["chips"] == 4
  assert answer["estimated_cycles_per_step"] > 0
  assert 0 < answer["mfu"] < 1
  np.testing.assert_allclose(
    answer["hours"] * 3600, answer["estimated_seconds_per_step"] * 60
  )
  lines = message.splitlines()
  said = f"compiling for {topology} with libtpu "
  assert all(x.startswith(said) for x in lines), "nothing else is said"


@pytest.mark.slow
def test_slices_join_topologies():
  pytest.importorskip("libtpu")
  devices, _ = topologies.describe("v5e:2x2", slices=2)
  mesh = sharding.make_mesh(fsdp=4, slices=2, devices=devices)
  slices = [[d.slice_index for d in row] for row in mesh.devices[:, :, 0]]
  assert slices == [[0] * 4, [1] * 4]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ring_sigmoid_loss", "ring_softmax_loss"])
def test_the_ring_needs_the_same_memory_on_any_number_of_chips(name):
  pytest.importorskip("libtpu")
  from benchmarks.tpu import compile_loss

  peaks = []
  for topology in ("v5e:4x4", "v5e:8x8"):
    devices, _ = topologies.describe(topology)
    mesh = sharding.make_mesh(devices=devices)
    function = functools.partial(
      getattr(losses, name), mesh=mesh, axes=sharding.BATCH_AXES
    )
    compiled = compile_loss(function, mesh)
    assert "all-gather" not in compiled.as_text()
    peaks.append(compiled.memory_analysis().peak_memory_in_bytes)
  # Tables of who sends to whom grow by a few bytes a chip.
  assert peaks[1] < peaks[0] * 1.01
  if name == "ring_sigmoid_loss":
    assert max(peaks) <= 6e6
