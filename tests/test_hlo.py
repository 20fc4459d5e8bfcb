"""What is read from a compiled program, on programs whose costs are known."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import pytest

from big_siglip import sharding
from big_siglip.plan import hlo

# As the TPU compiler writes it: a loop of 3 turns in one of 5, a fusion whose
# parts must not count beside it, a kernel, a loop that names its turns itself.
TEXT = """\
HloModule jit_f

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %t = f32[8]{0} tanh(%p), backend_config={"estimated_cycles":"999"}
}

%inner_condition (p: (s32[], f32[8])) -> pred[] {
  %c = s32[]{:T(128)} constant(3)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %c), direction=LT
}

%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f = f32[8]{0} fusion(%x), calls=%fused, c={"estimated_cycles":"10"}
  %k = f32[8]{0} custom-call(%f), custom_call_target="tpu_custom_call", c="
one {
}"
  %s = (f32[8]{0}, f32[8]{0}, u32[]) collective-permute-start(%f)
  %d = f32[8]{0} collective-permute-done(%s)
}

%outer_condition (p: (s32[], f32[8])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  ROOT %less = pred[]{:T(512)} compare(%five, %i), direction=GT
}

%outer (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w = (s32[], f32[8]) while(%p), condition=%inner_condition, body=%inner
}

%known (p: (s32[])) -> (s32[]) {
  %a = bf16[4,2]{1,0} all-gather(%y), dimensions={0}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %w1 = (s32[], f32[8]) while(%t), condition=%outer_condition, body=%outer
  %w2 = (s32[]) while(%t), condition=%unread, body=%known, NAMED
  %end = f32[8]{0} add(%x, %x), backend_config={"estimated_cycles":"1"}
}

%unread (p: (s32[])) -> pred[] {
  ROOT %less = pred[] custom(%p)
}
"""


def test_loops_multiply_what_is_in_them():
  costs = hlo.costs(TEXT.replace("NAMED", '{"known_trip_count":{"n":"7"}}'))
  assert costs.cycles == 5 * 3 * 10 + 1
  assert costs.kernel_calls == 15
  assert costs.collectives == {
    "all-gather": (7, 7 * 16),
    "collective-permute": (15, 15 * 32),
  }


# A loop of 4 turns whose chunk is computed or left out, as in the token loss.
CHOICE = """\
HloModule jit_g

%nothing (p: f32[8]) -> f32[8] {
  ROOT %z = f32[8]{0} broadcast(%p), backend_config={"estimated_cycles":"2"}
}

%dear (p: f32[8]) -> f32[8] {
  %g = f32[8]{0} all-gather(%p), dimensions={0}
  ROOT %d = f32[8]{0} dot(%g), backend_config={"estimated_cycles":"30"}
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %c = f32[8]{0} conditional(%i, %x, %x), BRANCHES
  %a = f32[8]{0} add(%c, %c), backend_config={"estimated_cycles":"5"}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %w = (s32[]) while(%t), condition=%c, body=%body, "known_trip_count":{"n":"4"}
}

%c (p: (s32[])) -> pred[] {
  ROOT %less = pred[] custom(%p)
}
"""


@pytest.mark.parametrize(
  "branches",
  [
    "branch_computations={%nothing, %dear}",
    "true_computation=%dear, false_computation=%nothing",
  ],
)
def test_of_a_conditional_the_dearest_branch_counts(branches):
  costs = hlo.costs(CHOICE.replace("BRANCHES", branches))
  assert costs.cycles == 4 * (30 + 5)
  assert costs.optional_cycles == 4 * (30 - 2)
  assert costs.collectives == {"all-gather": (4, 4 * 32)}


def test_what_is_done_in_exceptional_cases_alone_counts_nothing():
  named = 'metadata={op_name="jit(f)/while/body/cond/exception/dot"}, backend_'
  text = CHOICE.replace("BRANCHES", "branch_computations={%nothing, %dear}")
  lines = [
    line.replace("backend_", named) if "dot(" in line else line
    for line in text.splitlines()
  ]
  assert hlo.costs("\n".join(lines)).cycles == 4 * (2 + 5)


def test_a_loop_that_cannot_be_read_is_an_error():
  with pytest.raises(ValueError, match="how often a loop turns"):
    hlo.costs(TEXT)


def test_a_compiled_program_is_read_right():
  mesh = sharding.make_mesh()

  def shift(x):
    def body(_, x):
      turn = [(i, (i + 1) % 8) for i in range(8)]
      return jax.lax.ppermute(x * 2, "data", turn)

    return jax.lax.fori_loop(0, 11, body, x)

  spec = P("data")
  shifted = jax.shard_map(shift, mesh=mesh, in_specs=spec, out_specs=spec)
  x = jnp.zeros((16, 4), jnp.float32)
  text = jax.jit(shifted).lower(x).compile().as_text()
  assert hlo.costs(text).collectives == {"collective-permute": (11, 11 * 32)}


def test_what_does_not_fit_is_told_by_its_bytes():
  """Both messages are libtpu's, of two programs on v5e."""
  head = "RESOURCE_EXHAUSTED: "
  late = "Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."
  early = (
    "Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(19.94G) exceeds available HBM (15.75G)."
  )
  assert hlo.wanted_bytes(head + late) == round(20.5 * 2**30)
  assert hlo.wanted_bytes(head + early) == round(19.94 * 2**30)
  assert hlo.wanted_bytes("INTERNAL: something else, of 15.75G") is None
