"""What a decoder writes is what its probabilities say, with a cache or not."""

import functools
import itertools
import json

import jax
import numpy as np
from PIL import Image
import programs
import pytest
import runs
from safetensors import numpy as safe_numpy

import big_siglip
from big_siglip import build, sharding
from big_siglip.checkpoint import save_params
from big_siglip.data.text import ByteTokenizer
from big_siglip.errors import UserError
from big_siglip.models import make_model, restack
from big_siglip.models.compute import Compute
from big_siglip.models.decoder import Decoder
from big_siglip.models.decoding import generate
from big_siglip.objectives import captioning, term_views
from big_siglip.run import workdir
from big_siglip.schema.sizes import TowerSize
from big_siglip.trained import decoders

EOS = 1
_search = jax.jit(
  generate,
  static_argnames=("eos_id", "beams"),
)


class Case:
  """A decoder with random parameters, and three images."""

  def __init__(self, vocab, length, seed=0, tied=False):
    self.vocab, self.length = vocab, length
    size = TowerSize(width=16, depth=2, mlp_dim=32, num_heads=2)
    self.decoder = Decoder(size, vocab, length, tied, Compute())
    rng = np.random.default_rng(seed)
    self.context = np.float32(rng.normal(size=(3, 5, 24)))
    targets = np.zeros((1, 1, length), np.int32)
    shapes = jax.eval_shape(
      self.decoder.init, jax.random.key(0), targets, self.context[:1]
    )
    self.params = jax.tree.map(
      lambda x: np.float32(rng.normal(size=x.shape)), shapes["params"]
    )
    self._apply = jax.jit(self.decoder.apply)

  def scores(self, ids):
    """Log-probabilities NTLV of all that follow, one pass over everything."""
    found = self._apply({"params": self.params}, ids, self.context)
    logits = np.float64(found.hidden) @ np.float64(found.kernel)
    logits += np.float64(found.bias)
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))

  def write(self, start=None, given=(0, 0, 0), allowed=None, **options):
    if start is None:
      start = np.zeros((3, self.length), np.int32)
    if allowed is None:
      allowed = np.ones(self.vocab, bool)
    params = restack({"w": self.params}, True)["w"]
    return _search(
      params,
      self.context,
      start,
      np.int32(given),
      allowed,
      eos_id=EOS,
      **options,
    )

  def greedy(self, start, given, allowed, most):
    """The same without a cache: a whole pass for each token."""
    ids = np.zeros((3, 1, self.length), np.int32)
    total, done = np.zeros(3), np.zeros(3, bool)
    count = np.zeros(3, int)
    for place in range(self.length):
      scores = self.scores(ids)[:, 0, place]
      scores = np.where(allowed, scores, -np.inf)
      scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
      for n in range(3):
        if place < given[n]:
          ids[n, 0, place] = start[n, place]
        elif not done[n]:
          ids[n, 0, place] = scores[n].argmax()
          total[n] += scores[n].max()
          count[n] += 1
          done[n] = ids[n, 0, place] == EOS or count[n] == most
    return ids, total, count


@pytest.mark.parametrize("seed,tied", [(0, False), (1, True)])
def test_greedy_with_a_cache_equals_whole_passes(seed, tied):
  case = Case(30, 8, seed, tied)
  rng = np.random.default_rng(seed)
  start = rng.integers(2, 30, (3, 8)).astype(np.int32)
  allowed = rng.random(30) < 0.8
  allowed[EOS] = True
  given = 0, 1, 3
  for most in (8, 3):
    found = case.write(start, given, allowed, max_length=most)
    ids, total, count = case.greedy(start, given, allowed, most)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_allclose(found.score[:, 0], total, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(found.length[:, 0], count)
  assert len(np.unique(ids)) > 4


@functools.cache
def _all_sequences(vocab, length):
  """Every sequence up to its end, with zeros behind."""
  found = []
  for count in range(1, length + 1):
    for body in itertools.product(range(vocab), repeat=count):
      ends = EOS in body[:-1]
      if not ends and (body[-1] == EOS or count == length):
        found.append([*body, *[0] * (length - count)])
  return np.array(found, np.int32)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_beam_that_holds_everything_finds_the_best_of_all(penalty):
  case = Case(4, 4, 3)
  everything = _all_sequences(4, 4)
  found = case.write(beams=200, length_penalty=penalty)
  ends = everything == EOS
  lengths = np.where(ends.any(1), ends.argmax(1) + 1, 4)
  rows = np.broadcast_to(everything[None], (3, *everything.shape))
  scores = np.take_along_axis(case.scores(rows), rows[..., None], 3)[..., 0]
  scores = (scores * (np.arange(4) < lengths[:, None])).sum(-1)
  best = (scores / lengths**penalty).argsort(1)[:, ::-1]
  for n in range(3):
    for rank in range(5):
      row = best[n, rank]
      np.testing.assert_array_equal(found.ids[n, rank], everything[row])
      np.testing.assert_allclose(
        found.score[n, rank], scores[n, row], rtol=1e-5, atol=1e-4
      )
      assert found.length[n, rank] == lengths[row]


def test_beams_never_do_worse_than_greedy_of_equal_length():
  case = Case(30, 8, 5)
  greedy = case.write(length_penalty=0.0)
  beams = case.write(beams=4, length_penalty=0.0)
  assert (np.diff(beams.score, axis=1) <= 0).all()
  assert (beams.score[:, 0] >= greedy.score[:, 0] - 1e-4).all()
  assert len({row.tobytes() for row in np.asarray(beams.ids[0])}) == 4


PREFIXES = "cap:", "aref:", "gcap:"
LENGTH = 40


def _config(**section):
  config = runs.config(
    model__text__length=LENGTH, model__image__pooling="map", mesh__data=1
  ).unlock()
  config.batch_size = 8
  config.evals = {}
  config.data.crop_min_area = 1.0
  config.data.fields = ("boxes", "box_texts")
  config.terms = {
    "words": {
      "kind": "captioning",
      "weight": 1.0,
      "caption": 1.0,
      "aref": 1.0,
      "gcap": 1.0,
      "parallel": 0.25,
      "depth": None,
      "length": None,
      "tie_embedding": False,
      "boxes": "text",
      "bins": 101,
      "prefixes": PREFIXES,
      "chunk_size": 128,
      "slice_examples": None,
      **section,
    }
  }
  return config


def _save(folder, config, params):
  checkpoint = folder / "checkpoints" / "3"
  checkpoint.mkdir(parents=True)
  save_params(checkpoint, params)
  text = json.dumps(workdir.as_json(config))
  (folder / "config.json").write_text(text)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The folder of a run whose model says random things."""
  config = _config(gcap=0.0)
  program = build.program(config, build.mesh(config, jax.devices()[:1]))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: np.float32(0.3 * rng.normal(size=x.shape)),
    program.abstract_state.params,
  )
  folder = tmp_path_factory.mktemp("words") / "run"
  _save(folder, config, params)
  return folder


@pytest.fixture(scope="module")
def model(run):
  return big_siglip.load(run)


IMAGES = list(
  np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), np.uint8)
)


def test_a_model_writes_captions_of_its_images(model):
  found = model.caption(IMAGES, max_length=5)
  assert len(found) == 3 and all(isinstance(text, str) for text in found)
  assert model.caption(IMAGES, max_length=5, batch_size=2) == found
  begun = model.caption(IMAGES[:1], prefix="A dog", max_length=4, beams=2)
  assert begun[0].startswith("a dog") and len(begun[0]) > 5


def test_likelihoods_are_sums_over_the_tokens(model):
  texts = ["a dog", "", "a longer text about dogs", *["x"] * 16]
  found = model.log_likelihoods(IMAGES, texts, batch_size=2)
  assert found.shape == (3, 19)
  np.testing.assert_array_equal(found[:, 3:], found[:, 3:4] + np.zeros((1, 16)))
  trained = decoders.load(model.path, model.mesh)
  stacked = model.config.model.copy_and_resolve_references()
  stacked.scan = True
  apply = jax.jit(captioning.make_decoder(trained.spec, stacked).apply)
  pixels = np.stack([model.prepare_image(image) for image in IMAGES])
  look = jax.jit(make_model(model.config.model).look)
  seen = look(model.params, {"image": pixels})
  for column, text in enumerate(texts[:3]):
    ids = [ord(c) + 3 for c in f"cap:{text}"] + [EOS]
    row = np.zeros((3, 1, LENGTH), np.int32)
    row[:, 0, : len(ids)] = ids
    decoded = apply({"params": trained.params}, row, seen.image_tokens)
    logits = np.float64(decoded.hidden[:, 0]) @ np.float64(decoded.kernel)
    logits += np.float64(decoded.bias)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = sum(logits[:, i, ids[i]] for i in range(4, len(ids)))
    np.testing.assert_allclose(found[:, column], wanted, rtol=1e-5)


def test_what_cannot_be_written_is_told(model, tmp_path):
  for call, said in (
    (lambda m: m.caption(IMAGES, beams=0), "beams=0: must be a whole number"),
    (lambda m: m.caption(IMAGES, max_length=0), "max_length=0: must be"),
    (lambda m: m.caption([b"x"]), r"images\[0\]=<bytes>: "),
    (lambda m: m.caption(IMAGES, prefix="x" * 99), "'xxx.*: has 4[0-9] tokens"),
    (
      lambda m: m.caption_boxes(IMAGES, [(0, 0, 1, 1)]),
      "its decoder was not trained for gcap, but for caption, aref",
    ),
    (lambda m: m.caption_boxes(IMAGES, [(0, 0, 2, 1)]), r"boxes\[0\]=\(0, 0,"),
    (lambda m: m.find_boxes(IMAGES, "dog"), "phrases='dog': must be a list"),
  ):
    with pytest.raises(UserError, match=said):
      call(model)
  config = _config()
  config.terms = {}
  _save(tmp_path, config, jax.device_get(model.params))
  plain = big_siglip.load(tmp_path)
  with pytest.raises(UserError, match="has no decoder: it is no run with"):
    plain.caption(IMAGES)


def test_a_model_without_its_decoder_is_the_same(model):
  """The decoder is read apart: what others compute of the model stays."""
  assert "words" not in model.params
  assert model.embed_images(IMAGES).shape == (3, 32)


@pytest.mark.parametrize("name", ["exported", "m.npz"])
def test_an_export_keeps_its_decoder_on_request(model, run, tmp_path, name):
  output = tmp_path / name
  style = "big_vision" if name.endswith("npz") else "huggingface"
  command = "tools/export_weights.py", f"--checkpoint={run}"
  to = f"--format={style}", f"--output={output}"
  status, _, said = programs.call(*command, *to, "--keep=words")
  assert status == 0 and "left out" not in said, said
  again = big_siglip.load(output)
  if style == "huggingface":
    whole = safe_numpy.load_file(output / "model.safetensors")
    assert not any("words" in key for key in whole)
    said = again.caption(IMAGES, max_length=5)
    assert said == model.caption(IMAGES, max_length=5)
  one, two = (
    runs.flatten(decoders.load(m.path, m.mesh).params) for m in (model, again)
  )
  runs.assert_same(one, two)
  status, _, said = programs.call(
    *("tools/export_weights.py", f"--checkpoint={output}"),
    *("--format=huggingface", f"--output={tmp_path / 'second'}"),
  )
  assert status == 0
  assert (
    "note: terms of the loss are left out: words (captioning); --keep=words "
    "writes them beside the model"
  ) in said
  with pytest.raises(UserError, match="has no decoder: it is no run with"):
    decoders.load(str(tmp_path / "second"), model.mesh)


@pytest.mark.parametrize(
  ("flag", "said"),
  [
    ("--keep=others", "--keep=others: must be one of words, of config.terms"),
    (
      "--format=onnx",
      "--keep: goes with formats that are loaded again, not with onnx",
    ),
  ],
)
def test_what_cannot_be_kept_is_told(run, tmp_path, flag, said):
  assert (
    programs.said_in_one_line(
      *("tools/export_weights.py", f"--checkpoint={run}", "--keep=words"),
      *(f"--output={tmp_path / 'x'}", flag),
    )
    == f"error: {said}\n"
  )


def test_a_damaged_file_of_kept_terms_is_told(model, run, tmp_path):
  output = tmp_path / "m.npz"
  status, *_ = programs.call(
    *("tools/export_weights.py", f"--checkpoint={run}", "--keep=words"),
    *("--format=big_vision", f"--output={output}"),
  )
  assert status == 0
  file = tmp_path / "m.terms.safetensors"
  whole = file.read_bytes()
  for old, new, said in (
    (b'"kind', b'"kond', "does not say which terms it holds"),
    (b"captioning", b"captioninG", "has no decoder"),
    (b"words/logits/bias", b"words/logits/bIas", "holds other parameters than"),
  ):
    file.write_bytes(whole.replace(old, new, 1))
    assert file.read_bytes() != whole
    with pytest.raises(UserError, match=said):
      decoders.load(str(output), model.mesh)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  folder = tmp_path_factory.mktemp("photos")
  for number, image in enumerate(IMAGES[:2]):
    Image.fromarray(image).save(folder / f"{number}.png")
  (folder / "bad.png").write_bytes(b"no image")
  return folder


def test_the_command_says_what_the_model_says(model, run, photos):
  arguments = [
    "tools/caption.py",
    f"--checkpoint={run}",
    "--max_length=5",
    "--phrase=a dog",
    "--labels=cat,dog",
    photos,
  ]
  status, output, said = programs.call(*arguments, "--json")
  assert status == 0 and "1 of 3 images skipped" in said, said
  found = [json.loads(line) for line in output.splitlines()]
  assert [one["image"] for one in found] == [
    str(photos / f"{number}.png") for number in range(2)
  ]
  scores = model.log_likelihoods(IMAGES[:2], ["cat", "dog"])
  for one, row in zip(found, scores, strict=True):
    box, *labels = one["answers"]
    assert box["task"] == "aref" and box["text"] == "a dog"
    assert [label["task"] for label in labels] == ["label", "label"]
    likely = {label["text"]: label["score"] for label in labels}
    np.testing.assert_allclose([likely["cat"], likely["dog"]], row, rtol=1e-4)
    assert labels[0]["score"] >= labels[1]["score"]
  status, output, _ = programs.call(*arguments)
  first, box, *_ = output.splitlines()
  assert first == str(photos / "0.png") and "a dog" in box
  shown = model.find_boxes(IMAGES[:1], ["a dog"])[0][0]
  told = ",".join(f"{x:.3f}" for x in shown) if shown else "no box"
  assert box.split(maxsplit=1)[1] == f"{told}  a dog"
  status, output, _ = programs.call(*arguments, "--format=csv")
  head, *rows = output.splitlines()
  assert head == "image,task,text,y1,x1,y2,x2,score" and len(rows) == 6


@pytest.mark.parametrize(
  "flags,said",
  [
    ([], "--checkpoint=RUN must be given"),
    (["--checkpoint=x"], "name at least one image or folder of images"),
    (["--checkpoint=x", "--beams=0", "y"], "--beams=0: must be at least 1"),
    (
      ["--checkpoint=x", "--phrase= ", "y"],
      "--phrase='': must say what to look for",
    ),
    (
      ["--checkpoint=x", "--box=0,0,2,1", "y"],
      "--box=0,0,2,1: must be y1,x1,y2,x2 in shares of the image, with "
      "0 <= y1 < y2 <= 1, and x alike",
    ),
    (
      ["--checkpoint=x", "--prefix=a", "--phrase=b", "y"],
      "--prefix: is of captions, and goes without --phrase, --box and --labels",
    ),
  ],
)
def test_mistakes_on_the_command_line_are_told(flags, said):
  assert programs.said_in_one_line("tools/caption.py", *flags) == (
    f"error: {said}\n"
  )


WORDS = "a red dog", "two cats", "one blue bird", "a fish"


def _memorized(boxes, folder):
  """Trains on four images until what is said of them is known by heart."""
  config = _config(boxes=boxes)
  config.optimizer.update(
    learning_rate=3e-3, schedule="constant", warmup_steps=20, weight_decay=0.0
  )
  mesh = build.mesh(config, jax.devices()[:1])
  program = build.program(config, mesh)
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (4, 16, 16, 3), np.uint8)
  places = [(0.0, 0.1, 0.5, 0.9), (0.2, 0.2, 0.3, 0.4), (0.5, 0, 1, 1.0)]
  places.append((0.25, 0.5, 0.75, 0.6))
  writer = term_views.make_writer(
    config.terms.words, config.model, ByteTokenizer()
  )
  rows = [
    [
      writer.write(task, text, None if task == "caption" else box)
      for task in ("caption", "aref", "gcap")
    ]
    for text, box in zip(WORDS, places, strict=True)
  ]
  batch = {
    "image": np.tile(pixels, (2, 1, 1, 1)),
    "text": np.tile(ByteTokenizer()(WORDS, LENGTH), (2, 1)),
    "targets": np.tile([[ids for ids, _ in own] for own in rows], (2, 1, 1)),
    "target_weights": np.tile([[w for _, w in own] for own in rows], (2, 1, 1)),
    "faults": np.zeros((8, 6), np.int32),
  }
  batch = sharding.to_global(mesh, batch)
  state = program.init()
  for _ in range(300):
    state, metrics = program.step(state, batch)
  assert metrics["words/aref_accuracy"] > 0.99
  _save(folder, config, jax.device_get(state.params))
  return big_siglip.load(folder), list(pixels), places


@pytest.mark.slow
@pytest.mark.parametrize("boxes", ["text", "tokens"])
def test_what_was_learned_by_heart_is_written(boxes, tmp_path):
  model, images, places = _memorized(boxes, tmp_path / "run")
  for beams in (1, 3):
    assert model.caption(images, beams=beams) == list(WORDS)
    found = model.find_boxes(images, WORDS, beams=beams)
    for n in range(4):
      np.testing.assert_allclose(found[n][n], places[n], atol=1e-6)
    texts = model.caption_boxes(images, places, beams=beams)
    assert [texts[n][n] for n in range(4)] == list(WORDS)
  scores = model.log_likelihoods(images, WORDS)
  np.testing.assert_array_equal(scores.argmax(1), np.arange(4))
