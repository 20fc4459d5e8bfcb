"""Learning rates at the points that matter, and mistakes in their fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_siglip.errors import UserError
from big_siglip.schedules import learning_rate_schedule


def values(steps, **fields):
  schedule = learning_rate_schedule(
    **dict(learning_rate=0.4, total_steps=110, warmup_steps=10) | fields
  )
  return [float(schedule(step)) for step in steps]


@pytest.mark.parametrize(
  ("name", "middle", "end"),
  [
    ("cosine", 0.2, 0.0),
    ("linear", 0.2, 0.0),
    ("constant", 0.4, 0.4),
    ("rsqrt", 0.4 * (20 / 70) ** 0.5, 0.4 * (20 / 120) ** 0.5),
  ],
)
def test_schedule_passes_through_its_key_points(name, middle, end):
  rates = values([0, 5, 10, 60, 110, 200], name=name, timescale=20)
  # Cosine, linear and constant hold their end; rsqrt goes on falling.
  after = 0.4 * (20 / 210) ** 0.5 if name == "rsqrt" else end
  expected = [0.0, 0.2, 0.4, middle, end, after]
  np.testing.assert_allclose(rates, expected, atol=1e-7)


@pytest.mark.parametrize("name", ["cosine", "linear", "rsqrt", "constant"])
def test_schedule_has_no_jump_at_the_end_of_the_warm_up(name):
  before, at, after = values([9, 10, 11], name=name)
  assert before == pytest.approx(0.36)
  assert at == pytest.approx(0.4)
  assert 0.395 < after <= at


@pytest.mark.parametrize("name", ["cosine", "linear", "rsqrt", "constant"])
def test_cooldown_falls_linearly_to_zero_from_the_uncooled_rate(name):
  steps = [89, 90, 100, 105, 110, 120]
  plain = values(steps, name=name)
  cooled = values(steps, name=name, cooldown_steps=20)
  expected = np.array(plain) * [1.0, 1.0, 0.5, 0.25, 0.0, 0.0]
  np.testing.assert_allclose(cooled, expected, rtol=1e-5, atol=1e-8)


def test_schedule_without_warm_up_starts_at_the_peak():
  assert values([0], name="cosine", warmup_steps=0) == [pytest.approx(0.4)]


def test_warm_up_may_fill_the_whole_training():
  assert values([110], name="linear", warmup_steps=110) == [pytest.approx(0.4)]


def test_schedule_gives_the_same_under_jit():
  schedule = learning_rate_schedule(
    name="cosine", learning_rate=1.0, total_steps=9, warmup_steps=3
  )
  steps = jnp.arange(10)
  np.testing.assert_allclose(
    jax.jit(jax.vmap(schedule))(steps),
    [float(schedule(step)) for step in range(10)],
    rtol=1e-6,
    atol=1e-7,
  )


def test_schedule_error_lists_every_mistake():
  with pytest.raises(UserError) as error:
    learning_rate_schedule(
      name="cosin",
      learning_rate=0.0,
      total_steps=100,
      warmup_steps=90,
      cooldown_steps=11,
      timescale=0,
    )
  lines = str(error.value).split("\n  ")[1:]
  assert len(lines) == 4
  assert "'cosin': must be one of cosine, rsqrt, linear, constant" in lines[0]
  assert "learning_rate=0.0" in lines[1]
  assert "warmup_steps=90 + cooldown_steps=11" in lines[2]
  assert "config.total_steps=100" in lines[2]
  assert "timescale=0" in lines[3]


def test_stages_of_siglip2_lie_on_one_schedule():
  """Shares of the peak after 80, 90 and 95 % of 40 billion examples."""
  total = 1_220_703
  paper = dict(total_steps=total, warmup_steps=20_000, name="cosine")
  places = [round(total * share) for share in (0.8, 0.9, 0.95)]
  rates = values(places, **paper)
  np.testing.assert_allclose(
    np.array(rates) / 0.4, [0.0986, 0.0253, 0.0064], atol=1e-4
  )
  # NaFlex leaves at 90 %, and takes 3.75 times as long for the last tenth.
  start, rest = places[1], total - places[1]
  slow = dict(paper, stretch_from=start, stretch=3.75)
  later = [start, start + round(3.75 * rest / 2), start + round(3.75 * rest)]
  stretched = values(later, **slow)
  plain = values([start, start + round(rest / 2), total], **paper)
  np.testing.assert_allclose(stretched, plain, atol=1e-6)
  assert values(places[:2], **slow) == values(places[:2], **paper)
