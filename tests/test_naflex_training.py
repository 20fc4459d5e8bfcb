"""Training on sequences of patches whose length is drawn for each batch."""

import collections
import io
import json
import shutil

import jax
import numpy as np
from PIL import Image
import pytest
import runs
from test_naflex_inference import SIZES

import big_siglip
from big_siglip import build, sharding
from big_siglip.config import device_problems, find_problems
from big_siglip.data import lengths, patches, pipeline, sources
from big_siglip.data.preprocessing import Preprocess, Preprocessing
from big_siglip.data.views import fill, Patches
from big_siglip.device_program import _fitting_rows
from big_siglip.models import flops
from big_siglip.objectives import captioning, costs
from big_siglip.plan import plan
from big_siglip.report import inspection
from configs import terms

LENGTHS = (4, 9, 16)
NAFLEX = {
  "model__image__patch_size": 4,
  "model__image__pooling": "map",
  "model__image__max_patches": 16,
  "data__patch_lengths": LENGTHS,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  folder = tmp_path_factory.mktemp("photos")
  rng = np.random.default_rng(0)
  rows = ["image,caption"]
  for number, size in enumerate(SIZES * 2):
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{number}.png")
    rows.append(f"{number}.png,photo {number}")
  (folder / "captions.csv").write_text("\n".join(rows) + "\n")
  return sources.open_source("folder", "all", str(folder))


def test_lengths_are_drawn_by_seed_and_number_of_the_batch():
  draw = [lengths.drawn((1, 2, 3, 4, 5), 7, batch) for batch in range(5_000)]
  assert draw == [
    lengths.drawn((1, 2, 3, 4, 5), 7, batch) for batch in range(5_000)
  ]
  counts = collections.Counter(draw)
  # Five of 1,000 each, with a standard deviation of 28.
  assert sorted(counts) == [1, 2, 3, 4, 5]
  assert all(880 < count < 1_120 for count in counts.values())
  other = [lengths.drawn((1, 2, 3, 4, 5), 8, batch) for batch in range(5_000)]
  same = sum(a == b for a, b in zip(draw, other, strict=True))
  assert 880 < same < 1_120
  assert lengths.drawn((64,), 7, 3) == 64


@pytest.mark.parametrize("processes", (2, 4))
def test_processes_and_starts_draw_the_same_batches(source, processes):
  view = Patches(LENGTHS, 4, seed=5, crop_min_area=0.5, flip=True)

  def rows(start, index=0, count=1):
    batches = pipeline.train_batches(
      source,
      (view,),
      batch_size=8,
      seed=5,
      start=start,
      process_index=index,
      process_count=count,
      num_threads=0,
    )
    found = [next(batches) for _ in range(3)]
    batches.close()
    return found

  whole = rows(2)
  shapes = [batch["patches"].shape for batch in whole]
  assert shapes == [
    (8, lengths.drawn(LENGTHS, 5, number), 48) for number in (2, 3, 4)
  ]
  assert len({shape[1] for shape in shapes}) > 1
  parts = [rows(2, index, processes) for index in range(processes)]
  for number, batch in enumerate(whole):
    for name in ("patches", "grid", "index"):
      together = np.concatenate([part[number][name] for part in parts])
      np.testing.assert_array_equal(together, batch[name])
  later = rows(4)
  np.testing.assert_array_equal(later[0]["patches"], whole[2]["patches"])


def seen_of(view, examples, length, fast=False):
  fields = {
    "patches": ((length, 3 * view.patch**2), "uint8"),
    "grid": ((2,), "int32"),
  }
  out = {
    name: np.empty((len(examples), *shape), kind)
    for name, (shape, kind) in fields.items()
  }
  seeds = [(0, 0, number) for number in range(len(examples))]
  bad = fill((view,), 0, examples, seeds, out, fast=fast)
  return out, bad


def test_without_augmentation_it_is_what_evaluations_see(source):
  config = runs.config(**NAFLEX)
  config.model.image.max_patches = 9
  made = Preprocess.of(Preprocessing.of(config))
  examples = [source[number] for number in range(len(SIZES))]
  out, bad = seen_of(Patches((9,), 4, 0), examples, 9)
  assert not bad
  for number, example in enumerate(examples):
    expected = made.image(example.image)
    np.testing.assert_array_equal(out["patches"][number], expected["patches"])
    np.testing.assert_array_equal(out["grid"][number], expected["grid"])


def test_crops_keep_the_shape_of_an_image_and_mirrors_its_left(source):
  example = source[1]  # 40 x 90
  view = Patches((16,), 4, 0, crop_min_area=0.3, flip=True)
  plain, _ = seen_of(Patches((16,), 4, 0), [example] * 30, 16)
  out, bad = seen_of(view, [example] * 30, 16)
  assert not bad
  grids = out["grid"]
  ratio = grids[:, 1] / grids[:, 0]
  assert ((ratio > 1.3) & (ratio < 3.5)).all()
  assert len({row.tobytes() for row in out["patches"]}) == 30
  again, _ = seen_of(view, [example] * 30, 16)
  np.testing.assert_array_equal(out["patches"], again["patches"])
  mirrors, _ = seen_of(Patches((16,), 4, 0, flip=True), [example] * 30, 16)
  rows = [
    patches.join(seen, tuple(grid), 4)
    for seen, grid in zip(mirrors["patches"], mirrors["grid"], strict=True)
  ]
  straight = patches.join(plain["patches"][0], tuple(plain["grid"][0]), 4)
  kinds = [
    "same" if np.array_equal(row, straight) else "mirrored" for row in rows
  ]
  assert 5 < kinds.count("same") < 25
  for row, kind in zip(rows, kinds, strict=True):
    if kind == "mirrored":
      np.testing.assert_array_equal(row[:, ::-1], straight)


def test_a_photo_decoded_at_a_part_of_its_size_looks_alike(source):
  waves = np.linspace(0, 6, 400)
  tall, wide = np.meshgrid(np.sin(waves), np.cos(1.5 * waves))
  pixels = np.stack([tall, wide, tall * wide], -1)[:300] * 100 + 128
  buffer = io.BytesIO()
  Image.fromarray(pixels.astype(np.uint8)).save(buffer, "jpeg", quality=95)
  example = source[0].__class__(
    **{**vars(source[0]), "image": buffer.getvalue()}
  )
  exact, _ = seen_of(Patches((16,), 4, 0), [example], 16)
  fast, _ = seen_of(Patches((16,), 4, 0), [example], 16, fast=True)
  np.testing.assert_array_equal(fast["grid"], exact["grid"])
  difference = np.abs(fast["patches"].astype(int) - exact["patches"])
  assert difference.mean() < 1.5


def test_an_image_that_cannot_be_decoded_is_named(source):
  example = source[0].__class__(**{**vars(source[0]), "image": b"no image"})
  _, bad = seen_of(Patches((16,), 4, 0), [source[1], example], 16)
  assert list(bad) == [1]
  assert bad[1].kind == "image"


def batch_of(config, length, size):
  rng = np.random.default_rng(length)
  grids = [
    patches.grid_of(*rng.integers(1, 200, 2).tolist(), 4, length)
    for _ in range(size)
  ]
  return {
    "patches": rng.integers(0, 256, (size, length, 48), np.uint8),
    "grid": np.int32(grids),
    "text": rng.integers(0, 259, (size, 16), np.int32),
    "faults": np.zeros((size, 8), np.int32),
  }


@pytest.mark.parametrize(
  ("length", "slices"),
  [
    (9, (4,)),
    pytest.param(4, (8, 4, 2), marks=pytest.mark.slow),
    pytest.param(16, (8, 4, 2), marks=pytest.mark.slow),
  ],
)
def test_slices_change_nothing(length, slices):
  size = 16
  metrics, states = {}, {}
  for rows in (None, *slices):
    config = runs.config(**NAFLEX, batch_size=size)
    config.microbatch = rows
    config.data.patch_lengths = (length,)
    mesh = build.mesh(config, jax.devices()[:1])
    program = build.program(config, mesh)
    batch = sharding.to_global(mesh, batch_of(config, length, size))
    states[rows], metrics[rows] = program.step(program.init(), batch)
  for rows in slices:
    for name in ("loss", "grad_norm", "update_norm"):
      np.testing.assert_allclose(
        metrics[rows][name], metrics[None][name], rtol=1e-6
      )


def test_slices_of_short_sequences_hold_more_examples():
  config = runs.config(**NAFLEX, batch_size=64)
  config.microbatch = 8
  mesh = build.mesh(config, jax.devices()[:1])
  rows = {n: _fitting_rows(config, mesh, n, 64) for n in (4, 8, 9, 16, 100)}
  assert rows == {4: 32, 8: 16, 9: 8, 16: 8, 100: 8}
  shared = build.mesh(config, jax.devices()[:8])
  assert _fitting_rows(config, shared, 4, 64) == 32
  assert _fitting_rows(config, shared, 16, 24) == 8


@pytest.mark.parametrize("microbatch", [None, 8])
def test_the_longest_batches_may_be_trained_by_half(microbatch):
  """What is trained is the first half of what each device has."""
  halving = runs.config(**NAFLEX, data__halve_from=16, batch_size=32)
  plain = runs.config(**NAFLEX, batch_size=16)
  halving.microbatch = microbatch
  mesh = build.mesh(halving, jax.devices()[:2])
  whole = batch_of(halving, 16, 32)
  halves = {n: np.concatenate([x[:8], x[16:24]]) for n, x in whole.items()}
  results = []
  for config, batch in ((halving, whole), (plain, halves)):
    program = build.program(config, mesh)
    batch = sharding.to_global(mesh, batch)
    results.append(program.step(program.init(), batch)[1])
  for name in ("loss", "grad_norm", "update_norm"):
    np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-6)


def test_shorter_batches_are_trained_whole():
  """By the very program of a config that halves none."""
  texts = []
  for changes in ({"data__halve_from": 16}, {}):
    config = runs.config(**NAFLEX, batch_size=32, **changes)
    mesh = build.mesh(config, jax.devices()[:2])
    program = build.program(config, mesh)
    for length in (9, 16):
      batch = build.abstract_batch(config, mesh, length)
      lowered = program.step.lower(program.abstract_state, batch)
      texts.append(lowered.as_text())
  short, long, plain_short, plain_long = texts
  assert short == plain_short and long != plain_long


def test_half_of_a_batch_costs_half_and_must_be_even():
  config = runs.config(**NAFLEX, data__halve_from=9)
  each = [flops.flops_per_example(config.model, patches=n) for n in LENGTHS]
  expected = 3 * config.batch_size * (each[0] + (each[1] + each[2]) / 2) / 3
  np.testing.assert_allclose(flops.flops_per_step(config), expected)
  config.batch_size = 12
  (problem,) = device_problems(config, 4)
  assert problem.startswith("config.data.halve_from=9: needs an even number of")
  config.model.image.max_patches = config.data.patch_lengths = None
  said = [x for x in find_problems(config) if "halve_from" in x]
  assert said and "needs config.model.image.max_patches" in said[0]


def test_of_half_of_a_batch_the_terms_cost_half():
  config = runs.config(**NAFLEX, data__halve_from=9)
  config.unlock().terms = {
    "words": terms.captioning(),
    "self": terms.distillation(),
  }
  words, taught = config.terms.words, config.terms["self"]
  each = [
    3 * captioning.flops_per_example(words, config.model, patches=n)
    for n in LENGTHS
  ]
  assert each[0] < each[1] < each[2]
  own = costs.distillation_flops(taught, config.model)
  for found, (short, *long) in (("words", each), ("self", [own] * 3)):
    expected = config.batch_size * (short + sum(long) / 2) / 3
    np.testing.assert_allclose(costs.flops_of_terms(config)[found], expected)


def test_flops_are_the_mean_over_the_draw():
  config = runs.config(**NAFLEX)
  each = [flops.flops_per_example(config.model, patches=n) for n in LENGTHS]
  expected = 3 * config.batch_size * np.mean(each)
  np.testing.assert_allclose(flops.flops_per_step(config), expected)
  # A grid of 16 patches costs what a square of 16 x 16 pixels does.
  square = runs.config(**NAFLEX)
  square.data.patch_lengths = None
  square.model.image.max_patches = None
  np.testing.assert_allclose(
    flops.flops_per_example(config.model, patches=16),
    flops.flops_per_example(square.model),
  )


@pytest.mark.parametrize(
  ("changes", "said"),
  (
    ({"model.image.max_patches": 0}, "model.image.max_patches=0: must be at"),
    ({"data.patch_lengths": (0,)}, "data.patch_lengths=(0,): must be at least"),
    ({"data.patch_lengths": (9, 9.5)}, "must be at least one whole number"),
    ({"data.name": "scenes_wide/0"}, "data.name='scenes_wide/0': must be one"),
    ({"evals.test.data": "scenes/COUNT"}, "evals.test.data='scenes/COUNT': mu"),
    ({"data.patch_lengths": ()}, "data.patch_lengths=()"),
    ({"model.image.max_patches": None}, "needs config.model.image.max_patches"),
    ({"model.image.pooling": "cls"}, "a class token has no place in a grid"),
    (
      {"data.name": "embeddings", "init.path": "m"},
      "patch_lengths=(4, 9, 16): cannot be set with config.data.name='embed",
    ),
    ({"data.crop": "center"}, "data.crop='center': must be 'none'"),
    ({"model.attention": "short"}, "it has no masks"),
  ),
)
def test_a_config_that_cannot_be_is_told_in_a_line(changes, said):
  config = runs.config(**NAFLEX)
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  problems = find_problems(config)
  assert any(said in line for line in problems), problems


def test_a_run_goes_on_through_changes_of_length_bit_for_bit(tmp_path):
  options = dict(
    **{**NAFLEX, "data__patch_lengths": (4, 16)},  # Two programs suffice.
    seed=2,
    total_steps=8,
    checkpoint__every=3,
    log_every=1,
    evals__test__every=8,
  )
  drawn = [lengths.drawn((4, 16), 2, step) for step in range(8)]
  assert drawn == [16, 4, 4, 16, 4, 4, 4, 16]

  def train(folder, steps):
    config = runs.config(**options)
    big_siglip.train(config, folder)

  train(tmp_path / "whole", 8)
  lines = (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
  losses = [json.loads(line).get("loss") for line in lines]
  assert np.isfinite([loss for loss in losses if loss is not None]).all()
  # As if it had been cut off after its checkpoint at step 6.
  whole = runs.final_state(tmp_path / "whole", **options)
  shutil.copytree(tmp_path / "whole", tmp_path / "cut")
  shutil.rmtree(tmp_path / "cut/checkpoints/8")
  train(tmp_path / "cut", 8)
  again = runs.final_state(tmp_path / "cut", **options)
  runs.assert_same(again[0], whole[0])
  assert again[1] == whole[1]


def test_each_length_is_planned():
  config = runs.config(**NAFLEX)
  assert plan.lengths(config) == LENGTHS
  config.data.patch_lengths = (4, 16)
  made = [plan.make_plan(config, "cpu:1", length=n) for n in (4, 16)]
  peaks = [own.peak_hbm_bytes_per_chip for own in made]
  assert peaks == sorted(peaks) and peaks[0] < peaks[-1]
  assert made[0].flops_per_step < made[-1].flops_per_step
  mean = np.mean([own.flops_per_step for own in made])
  np.testing.assert_allclose(mean, flops.flops_per_step(config))
  config.data.patch_lengths, config.model.image.max_patches = None, None
  assert plan.lengths(config) == ()


def test_what_training_sees_is_drawn_in_its_own_shape(source, tmp_path):
  config = runs.config(**NAFLEX, batch_size=6)
  view = Patches(LENGTHS, 4, 0)
  tokens = build.views(config)[1]
  found = inspection.inspect(source, (view, tokens), config, 6)
  shapes = {seen.shape for _, _, seen, _ in found.rows}
  assert len(shapes) > 1
  for shape in shapes:
    assert shape[0] % 4 == shape[1] % 4 == 0
    assert shape[0] * shape[1] <= 16 * 16
  inspection.draw(found, tmp_path / "page.png")
  assert (tmp_path / "page.png").stat().st_size > 1_000
