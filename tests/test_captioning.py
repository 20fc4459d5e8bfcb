"""The captioning term: its numbers by hand, in slices, on meshes, in a run."""

import functools
import io
import re
import shutil
import zlib

import jax
import model_cases
import numpy as np
from PIL import Image
import programs
import pytest
import runs
import step_cases

from big_siglip import build, command_line, sharding
from big_siglip.checkpoint import Checkpoints
from big_siglip.config import find_problems
from big_siglip.data.batch import empty, union
from big_siglip.data.box_reading import Reader
from big_siglip.data.sources import Example
from big_siglip.data.targets import TASKS, Writer
from big_siglip.data.text import ByteTokenizer, SentencePieceTokenizer
from big_siglip.data.views import (
  CutTargets,
  fill,
  ImageView,
  Pixels,
  Sample,
  Streams,
  Targets,
  Tokens,
)
from big_siglip.errors import UserError
from big_siglip.models import SigLIP
from big_siglip.objectives import captioning, make_terms

SIZE, LENGTH, VOCAB = 64, 6, 50
TOWER = {"width": 16, "num_heads": 8, "mlp_dim": 16}
PREFIXES = ("cap:", "aref:", "gcap:")


def _section(**changes):
  section = {
    "kind": "captioning",
    "weight": 1.0,
    "caption": 1.0,
    "aref": 0.5,
    "gcap": 2.0,
    "parallel": 0.5,
    "depth": None,
    "length": None,
    "tie_embedding": False,
    "boxes": "tokens",
    "bins": 11,
    "prefixes": PREFIXES,
    "chunk_size": 40,
    "slice_examples": None,
  }
  return {**section, **changes}


def _batch(config, tasks=3):
  image, text = model_cases.example_inputs(config, batch=SIZE)
  rng = np.random.default_rng(1)
  shape = SIZE, tasks, LENGTH
  count = rng.integers(1, LENGTH + 1, (SIZE, tasks, 1))
  count[::3, 1:] = 0  # Every third has no region.
  return {
    "image": image,
    "text": text,
    "targets": rng.integers(0, VOCAB + 14, shape, np.int32),
    "target_weights": np.float32(np.arange(LENGTH) < count),
  }


@functools.cache
def _one_step(shape, count, weight=1.5, limit=None, remat="none"):
  """Returns metrics and gradient of a step on a mesh, in slices."""
  axes = dict(zip(sharding.AXES, shape, strict=True))
  config = runs.config(batch_size=SIZE, loss__name="ring_sigmoid").unlock()
  config.terms = {"words": _section(weight=weight, slice_examples=limit)}
  config.mesh.update(axes)
  config.model = model_cases.model_config(TOWER, TOWER, remat=remat)
  mesh = sharding.make_mesh(
    **axes, devices=jax.devices()[: int(np.prod(shape))]
  )
  model = SigLIP(config.model, sharding.batch_sharding(mesh))
  terms = make_terms(config, mesh)
  batch = _batch(config.model)
  state = step_cases.first_state(model, terms, batch)
  rng = np.random.default_rng(2)
  state.params["words"] = jax.tree.map(  # Its logits start as zeros.
    lambda x: x + np.float32(0.1 * rng.normal(size=x.shape)),
    state.params["words"],
  )
  metrics, gradient, after = step_cases.take(
    state, batch, model, terms, mesh, count
  )
  return metrics, gradient, runs.flatten(state.params)


@step_cases.shapes_and_counts(4)
def test_slices_and_meshes_change_neither_loss_nor_gradient(shape, count):
  _assert_as_whole(*_one_step(shape, count))


@step_cases.shapes_counts_and_limits
def test_taken_back_by_itself_it_is_the_same(shape, count, limit):
  _assert_as_whole(*_one_step(shape, count, limit=limit, remat="full"))


def _assert_as_whole(metrics, gradient, _):
  """Checks a step against one in which all is taken back together."""
  expected, expected_gradient, _ = _one_step((1, 1, 1), 1)
  assert metrics.keys() == expected.keys()
  for name in expected:
    if name == "loss" or name.startswith(("words/", "contrastive/")):
      np.testing.assert_allclose(
        metrics[name], expected[name], rtol=1e-6, err_msg=name
      )
  total = metrics["contrastive/loss"] + 1.5 * metrics["words/loss"]
  np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)
  largest = max(np.abs(x).max() for x in expected_gradient.values())
  for path, wanted in expected_gradient.items():
    np.testing.assert_allclose(
      gradient[path], wanted, rtol=0, atol=1e-6 * largest, err_msg=path
    )
  for path in ("words/logits/kernel", "image/patch_embedding/kernel"):
    assert np.abs(expected_gradient[path]).max() > 1e-4


def test_the_loss_is_a_mean_over_targets_then_over_all_examples():
  """By hand, from the logits of every token."""
  metrics, _, flat = _one_step((1, 1, 1), 1)
  config = model_cases.model_config(TOWER, TOWER)
  batch, spec = _batch(config), _section()
  params = {}
  for path, leaf in flat.items():
    section = params
    *parents, name = path.split("/")
    for parent in parents:
      section = section.setdefault(parent, {})
    section[name] = leaf
  model = SigLIP(config)
  seen = jax.jit(model.look)(params, batch)
  decoder = captioning.make_decoder(spec, config)
  assert decoder.vocab_size == VOCAB + 11 + 3
  key = jax.random.fold_in(jax.random.key(3), zlib.crc32(b"words"))
  keys = jax.random.fold_in(key, 0)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(keys, np.arange(SIZE))
  drawn = np.array([jax.random.bernoulli(key, 0.5) for key in keys])
  assert 20 < drawn.sum() < 44
  parallel = np.stack([drawn, drawn & False, drawn & False], axis=1)
  decoded = jax.jit(decoder.apply)(
    {"params": params["words"]},
    batch["targets"],
    seen.image_tokens,
    None,
    parallel,
  )
  logits = np.float64(decoded.hidden) @ np.float64(decoded.kernel)
  logits += np.float64(decoded.bias)
  logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
  own = -np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
  real = batch["target_weights"]
  count = real.sum(-1)
  means = (own * real).sum(-1) / np.maximum(count, 1)
  wanted = (means * [1.0, 0.5, 2.0]).sum(-1).mean()
  np.testing.assert_allclose(metrics["words/loss"], wanted, rtol=1e-6)
  hits = (logits.argmax(-1) == batch["targets"]) * real
  of = {"caption": (0, ~drawn), "parallel": (0, drawn)}
  of |= {"aref": (1, drawn | True), "gcap": (2, drawn | True)}
  for kind, (task, rows) in of.items():
    rows = rows & (count[:, task] > 0)
    tokens = count[rows, task].sum()
    surprise = (own * real)[rows, task].sum() / tokens
    for name, value in {
      "loss": means[rows, task].mean(),
      "accuracy": hits[rows, task].sum() / tokens,
      "perplexity": np.exp(surprise),
    }.items():
      np.testing.assert_allclose(
        metrics[f"words/{kind}_{name}"], value, rtol=1e-5, err_msg=kind
      )


def _writer(
  boxes="text", length=40, bins=501, tokenizer=None, prefixes=PREFIXES
):
  tokenizer = tokenizer or ByteTokenizer(pad_id=0)
  return Writer(tokenizer, tokenizer.vocab_size, length, boxes, bins, prefixes)


def test_sequences_as_text():
  writer = _writer()
  box = (0.1, 0.25, 0.5, 1.0)
  for task, wanted in (
    ("caption", "cap:a cat"),
    ("aref", "aref:a cat:50 125 250 500"),
    ("gcap", "gcap:50 125 250 500:a cat"),
  ):
    ids, weights = writer.write(
      task, "A cat", None if task == "caption" else box
    )
    assert writer.tokenizer.decode(ids) == wanted
    given = len(PREFIXES[TASKS.index(task)])
    end = len(wanted)
    assert ids[end] == 1 and not ids[end + 1 :].any()
    np.testing.assert_array_equal(
      weights, (np.arange(40) >= given) & (np.arange(40) <= end)
    )
  ids, _ = writer.write("aref", "a cat", box)
  np.testing.assert_allclose(writer.read_box(ids), box)
  assert writer.read_box(writer.write("caption", "a cat")[0]) is None
  assert writer.read_box(writer.ids("a cat:50 125 250 501")) is None
  assert writer.read_box(writer.ids("a cat:250 125 50 500")) is None


def test_sequences_as_tokens_of_a_vocabulary_without_digits():
  pieces = SentencePieceTokenizer("configs/scenes.model")
  first = pieces.vocab_size
  writer = _writer("tokens", 12, 101, pieces)
  writer.check(TASKS, "config.terms.words")
  words = writer.ids("a big red circle")
  assert len(words) == 4 and max(words) < first
  box = (0.0, 0.25, 0.5, 1.0)
  marks = [first, first + 25, first + 50, first + 100]
  ids, weights = writer.write("aref", "a big red circle", box)
  assert ids.tolist() == [first + 102, *words, *marks, 1, 0, 0]
  assert weights.tolist() == [0, *[1] * 9, 0, 0]
  assert writer.read_box(ids) == box
  assert writer.read_text(ids) == "a big red circle"
  ids, _ = writer.write("gcap", "a big red circle", box)
  assert ids.tolist() == [first + 103, *marks, *words, 1, 0, 0]
  assert writer.start("gcap", box=box) == ids[:5].tolist()
  ids, _ = writer.write("caption", "a big red circle")
  assert ids[:6].tolist() == [first + 101, *words, 1]


def test_a_long_text_is_cut_and_the_box_stays():
  writer = _writer("tokens", 10)
  ids, weights = writer.write("aref", "x" * 100, (0, 0, 1, 1))
  assert ids.tolist()[-5:] == [259, 259, 759, 759, 1] and weights.sum() == 9
  writer = _writer(length=9)
  ids, _ = writer.write("caption", "x" * 100)
  assert writer.tokenizer.decode(ids) == "cap:xxxx" and ids[-1] == 1


@pytest.mark.parametrize(
  "changes,tasks,said",
  [
    (
      dict(tokenizer="pieces"),
      TASKS,
      r"boxes='text': config.data.tokenizer cannot write numbers such as "
      "'500 500 500 500'; must be tokens",
    ),
    (dict(prefixes=("a", "a", "b")), TASKS, "prefixes=.*: must differ"),
    (dict(length=22), TASKS, "length=22: must be at least 23 for its aref"),
    (dict(length=5), ("caption",), "must be at least 6 for its caption"),
  ],
)
def test_what_cannot_be_written_is_told(changes, tasks, said):
  if changes.get("tokenizer"):
    changes = {"tokenizer": SentencePieceTokenizer("configs/scenes.model")}
  with pytest.raises(UserError, match=said):
    _writer(**changes).check(tasks, "config.terms.words")


def test_it_draws_the_caption_that_the_text_tower_reads():
  examples = [
    Sample.of(Example(b"", tuple(f"text {i} {j}" for j in range(5)), ""), False)
    for i in range(8)
  ]
  tokens = Tokens(ByteTokenizer(), 16)
  targets = Targets(_writer(length=16), ("caption",), 16)
  out = {
    "text": np.zeros((8, 16), np.int32),
    "targets": np.zeros((8, 1, 16), np.int32),
    "target_weights": np.zeros((8, 1, 16), np.float32),
  }
  seeds = [(0, 0, i) for i in range(8)]
  for view in (tokens, targets):
    assert view(examples, Streams(seeds, view.name), out) == {}
  for text, target in zip(out["text"], out["targets"][:, 0], strict=True):
    read = tokens.tokenizer.decode(text)
    assert targets.writer.tokenizer.decode(target) == f"cap:{read}"
  assert len({bytes(row) for row in out["text"][:, 7:]}) > 2


def _boxed(fields):
  buffer = io.BytesIO()
  Image.new("RGB", (100, 50)).save(buffer, "PNG")
  return Example(buffer.getvalue(), ("a picture",), "it", fields=fields)


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_are_those_of_the_pixels_that_are_shown(flip):
  """Of one box in pixels, mirrored where the image is."""
  known = {"boxes": [[20, 5, 90, 25]], "box_texts": ["a dog"]}
  examples = [
    _boxed(known if i % 2 else {"boxes": [], "box_texts": []}) for i in range(8)
  ]
  pixels = Pixels(16, flip=flip)
  view = CutTargets(_writer(), TASKS, 40, pixels, Reader(format="xyxy"))
  assert isinstance(view, ImageView)
  out = empty(union([pixels.fields(0), view.fields(0)]), 8)
  seeds = [(0, 0, i) for i in range(8)]
  assert fill([pixels, view], 0, examples, seeds, out, fast=False) == {}
  rngs, found = Streams(seeds, pixels.name), set()
  for i in range(8):
    _, mirrored = pixels.geometry(50, 100, rngs[i])
    box = "50 50 250 400" if mirrored else "50 100 250 450"
    wanted = ["cap:a picture", f"aref:a dog:{box}", f"gcap:{box}:a dog"]
    if not i % 2:
      wanted[1:] = ["", ""]
      assert not out["targets"][i, 1:].any()
      assert not out["target_weights"][i, 1:].any()
    found.add(mirrored)
    read = [view.writer.tokenizer.decode(ids) for ids in out["targets"][i]]
    assert read == wanted
  assert found == ({False, True} if flip else {False})


def test_an_example_with_a_bad_box_is_skipped():
  example = _boxed({"boxes": [[0.5, 0, 0.1, 1]], "box_texts": ["a dog"]})
  view = Targets(_writer(), TASKS, 40, Pixels(16), Reader())
  out = empty(view.fields(0), 1)
  bad = fill([view], 0, [example], [(0, 0, 0)], out, fast=False)
  assert "upside down" in str(bad[0])


def test_tasks_with_boxes_ask_for_the_fields():
  config = runs.config(model__text__length=64).unlock()
  config.terms = {"words": _section(boxes="text")}
  with pytest.raises(
    UserError,
    match=r"config.data.fields=\(\): must hold 'boxes' and 'box_texts', for "
    "config.terms.words.aref=0.5",
  ):
    build.views(config)
  config.data.fields = ("boxes", "box_texts")
  *_, view = build.views(config)
  assert isinstance(view, CutTargets)  # Digits are cropped at random.
  config.data.crop_min_area = 1.0
  *_, view = build.views(config)
  assert not isinstance(view, ImageView)


@pytest.mark.parametrize(
  "changes,said",
  [
    (
      dict(caption=0.0, aref=0.0, gcap=0.0),
      "config.terms.words.caption=0.0: must be above 0, or aref or gcap",
    ),
    (dict(parallel=1.5), r"words.parallel=1.5: must lie in \[0, 1\]"),
    (dict(prefixes=("a",)), "words.prefixes=.*: must be three texts"),
    (dict(boxes="words"), "words.boxes='words': must be one of text, tokens"),
    (dict(weight=-1.0), "words.weight=-1.0: must be at least 0"),
    (dict(depht=2), "config.terms.words.depht: unknown"),
  ],
)
def test_mistakes_of_the_section_are_told_in_one_line(changes, said):
  config = runs.config().unlock()
  config.terms = {"words": _section(aref=0.0, gcap=0.0) | changes}
  (problem,) = find_problems(config)
  assert re.search(said, problem), problem


def test_names_that_are_taken_and_a_second_decoder_are_refused():
  config = runs.config().unlock()
  section = _section(aref=0.0, gcap=0.0)
  config.terms = {"image": section, "more": dict(section)}
  taken, second = find_problems(config)
  assert taken.startswith("config.terms.image: must have another name")
  assert second == (
    "config.terms.more.kind='captioning': must be one alone, and "
    "config.terms.image is another"
  )


CONFIG = """
from configs import digits, terms

def get_config():
  c = digits.get_config()
  c.terms.words = terms.captioning(depth=1)
  return c
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
  file = tmp_path_factory.mktemp("config") / "words.py"
  file.write_text(CONFIG)
  return file


def _train(config_file, workdir, **changes):
  status, output, error = programs.call(
    "main.py",
    f"--config={config_file}",
    f"--workdir={workdir}",
    *runs.overrides(**{"evals__test__every": 100, **changes}),
  )
  assert status == 0, output + error
  return output + error


@pytest.mark.slow
def test_a_run_with_it_resumes_bit_for_bit(config_file, tmp_path):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  steps = dict(total_steps=4, checkpoint__every=2)
  _train(config_file, whole, **steps)
  _train(config_file, parts, **steps)
  for folder in (parts / "checkpoints").iterdir():
    if folder.name == "4":
      shutil.rmtree(folder)
  said = _train(config_file, parts, **steps)
  assert "resuming from step 2" in said
  found, wanted = (_state(config_file, folder) for folder in (parts, whole))
  runs.assert_same(found, wanted)
  assert any("words/logits/kernel" in path for path in found)


def _state(config_file, workdir):
  config = command_line.load_config(str(config_file), runs.overrides())
  config.total_steps = 4
  program = build.program(config, build.mesh(config))
  checkpoints = Checkpoints(workdir / "checkpoints", keep=2)
  state, _ = checkpoints.restore(program.abstract_state)
  checkpoints.close()
  return runs.flatten(state)
