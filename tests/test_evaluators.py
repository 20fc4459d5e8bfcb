"""Whole evaluators on tiny images and a model of two matrices.

Their numbers must not depend on how many devices there are, nor, but for
rounding, on how the data is cut into batches.
"""

import csv
import io
import json
import logging
import pathlib

from evaluator_cases import slow_recall, unit
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import ml_collections
import model_cases
import numpy as np
from PIL import Image
import pytest
from sklearn import metrics

from big_siglip import sharding
from big_siglip.data.preprocessing import Preprocess, Preprocessing
from big_siglip.data.sources import Example, open_source, Options
from big_siglip.data.text import ByteTokenizer
from big_siglip.errors import UserError
from big_siglip.evaluation import rows
from big_siglip.evaluators import (
  Embedders,
  exact_model,
  make_embedders,
  make_evaluator,
  slices,
)
from big_siglip.evaluators.embed import embed_all, make_embed
from big_siglip.models import SigLIP
from big_siglip.schema.fields import evaluation_problems
from big_siglip.schema.sizes import resolve_image
from big_siglip.sharding import AXES, batch_devices

CLASS_NAMES = ("red", "green", "blue")
CORRUPT = 5


class Source:
  """19 noisy pictures of three colours, one of them damaged."""

  class_names = CLASS_NAMES

  def __init__(self, split="test"):
    self.seed = 0 if split == "test" else 100

  def __len__(self):
    return 19

  def __getitem__(self, index):
    rng = np.random.default_rng(self.seed + index)
    label = index % 3
    pixels = rng.integers(0, 200, (4, 4, 3), np.uint8)
    pixels[..., label] += 30
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = file.getvalue()
    return Example(
      image=data[:40] if index == CORRUPT else data,
      texts=tuple(f"{CLASS_NAMES[label]} {index}{i}" for i in range(1 + label)),
      name=f"picture_{index}.png",
      label=label,
    )


PREPROCESS = Preprocess.of(
  Preprocessing(4, "bilinear", 12, "bytes", True, "none", 1)
)


def make_mesh(devices, fsdp=1):
  return jax.make_mesh(
    (devices // fsdp, fsdp, 1),
    AXES,
    devices=jax.devices()[:devices],
    axis_types=(AxisType.Auto,) * 3,
  )


def make_params():
  rng = np.random.default_rng(3)
  image = rng.normal(size=(48, 6)).astype(np.float32)
  text = rng.normal(size=(ByteTokenizer.vocab_size, 6)).astype(np.float32)
  return {"image": image, "text": text}


SCALE, BIAS = 4.0, -2.0


def image_features(params, image):
  flat = image.reshape(len(image), -1).astype(jnp.float32) / 255 - 0.4
  return jnp.dot(flat, params["image"], precision="highest")


def embed_image(params, image):
  vectors = image_features(params, image)
  return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def embed_text(params, text):
  vectors = params["text"][text].mean(1)
  return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def evaluate(spec, mesh, source=None, spoil=lambda vectors, inputs: vectors):
  """Returns what an evaluator says; `spoil` changes embeddings."""

  def embed(apply):
    return make_embed(lambda params, x: spoil(apply(params, x), x), mesh)

  embedders = Embedders(
    embed(embed_image),
    embed(embed_text),
    embed(image_features),
    lambda params: (SCALE, BIAS),
    batch_devices(mesh),
  )
  section = {"data": "tfds:colours", "path": None, "split": "test", "every": 1}
  spec = {**section, **FIELDS, **spec}
  assert not evaluation_problems({"test": spec}, "config.evals")
  evaluator = make_evaluator(
    ml_collections.ConfigDict(spec),
    open_split=lambda split: source or Source(split),
    preprocess=PREPROCESS,
    embedders=embedders,
  )
  result = evaluator(make_params())
  assert_adds_up(result)
  return result


def assert_adds_up(result):
  """What each image adds, and each row says, makes the metrics to the bit."""
  for name, score in result.scores.items():
    exact = "shot" not in name  # Thirds of draws do not add up to the bit.
    expected = result.metrics[name]
    assert score.mean() == (expected if exact else pytest.approx(expected))
  if result.rows is not None:
    table = result.rows()
    found = rows.scores(rows.take(table, rows.measured(table)))
    assert {k: score.mean() for k, score in found.items()} == {
      k: result.metrics[k] for k in result.scores
    }


def readable_examples():
  examples = enumerate(map(Source().__getitem__, range(19)))
  return [(i, example) for i, example in examples if i != CORRUPT]


def numpy_images():
  pixels = [
    np.asarray(Image.open(io.BytesIO(example.image)))
    for _, example in readable_examples()
  ]
  flat = np.stack(pixels).reshape(18, -1) / 255.0 - 0.4
  return unit(flat @ make_params()["image"])


def numpy_texts(texts):
  tokens = ByteTokenizer()(texts, 12)
  return unit(make_params()["text"][tokens].mean(1).astype(np.float64))


TEMPLATES = ("a {}.", "{}", "photo of {}")
FIELDS = dict(image_key=None, text_keys=())
LABELS = dict(label_key=None, classes_file=None, answers_file=None)
CLASSIFICATION = dict(
  kind="classification",
  batch_size=4,
  templates=TEMPLATES,
  canonicalize=False,
  templates_file=None,
  **LABELS,
)
NO_FILE = dict(captions_file=None, max_captions=None, language=None)
BATCHES = [(3, 1), (7, 2), (16, 8), (3, 8), (16, 1)]


@pytest.mark.parametrize(("batch_size", "devices"), BATCHES)
def test_classification_is_the_same_for_any_batches(batch_size, devices):
  spec = dict(CLASSIFICATION, batch_size=batch_size)
  got = evaluate(spec, make_mesh(devices, fsdp=2 if devices == 8 else 1))
  classes = [
    unit(numpy_texts([t.format(name) for t in TEMPLATES]).mean(0))
    for name in CLASS_NAMES
  ]
  predicted = (numpy_images() @ np.stack(classes).T).argmax(1)
  labels = [example.label for _, example in readable_examples()]
  expected = metrics.accuracy_score(labels, predicted)
  assert got.metrics == {
    "accuracy": pytest.approx(expected),
    "top5": 1.0,
    "per_class": metrics.balanced_accuracy_score(labels, predicted),
    "skipped": 1.0,
    "left_out": 0.0,
  }
  assert got.details["confusion"] == (
    metrics.confusion_matrix(labels, predicted).tolist()
  )
  assert 0 < expected < 1


@pytest.mark.parametrize(("batch_size", "devices"), BATCHES)
def test_retrieval_is_the_same_for_any_batches(batch_size, devices):
  spec = dict(kind="retrieval", batch_size=batch_size, **NO_FILE)
  got = evaluate(spec, make_mesh(devices)).metrics
  texts, text_ids = [], []
  for index, example in readable_examples():
    texts += example.texts
    text_ids += [index] * len(example.texts)
  ids = [index for index, _ in readable_examples()]
  similarities = numpy_images() @ numpy_texts(texts).T
  assert len(texts) == 34  # Without those of the damaged image.
  expected = {"skipped": 1.0}
  for k in (1, 5, 10):
    expected[f"image_to_text/recall@{k}"] = pytest.approx(
      slow_recall(similarities, ids, text_ids, k)
    )
    expected[f"text_to_image/recall@{k}"] = pytest.approx(
      slow_recall(similarities.T, text_ids, ids, k)
    )
  assert got == expected
  assert 0 < got["text_to_image/recall@5"] < 1


def test_damaged_image_is_named_in_the_log(caplog):
  spec = dict(kind="retrieval", batch_size=19, **NO_FILE)
  with caplog.at_level(logging.WARNING):
    evaluate(spec, make_mesh(1))
  assert "picture_5.png" in caplog.text


def test_embeddings_come_back_unpadded_and_in_order():
  embed = make_embed(lambda params, x: params * x, make_mesh(8))
  rows = np.arange(10, dtype=np.float32)[:, None]
  batches = [
    {
      "text": rows[order],
      "index": np.int32(order),
      "label": np.int32(order) * 2,
      "mask": np.array([True, True, last, True]),
    }
    for order, last in (([9, 8, 3, 1], True), ([0, 2, 4, 5], False))
  ]
  got, values = embed_all(
    embed, np.float32(3), batches, inputs="text", labels=("label",)
  )
  np.testing.assert_array_equal(values["index"], [0, 1, 2, 3, 5, 8, 9])
  np.testing.assert_array_equal(values["label"], values["index"] * 2)
  np.testing.assert_array_equal(got, 3.0 * values["index"][:, None])
  assert got.dtype == np.float32


def test_evaluation_without_any_readable_example_says_so():
  embed = make_embed(lambda params, x: params * x, make_mesh(1))
  batch = {
    "text": np.zeros((2, 1), np.float32),
    "index": np.zeros(2, np.int32),
    "mask": np.zeros(2, bool),
  }
  with pytest.raises(UserError, match="none of its examples can be read"):
    embed_all(embed, np.float32(1), [batch], inputs="text")


@pytest.mark.parametrize("kind", ["retrieval", "calibration"])
def test_nothing_to_ask_by_is_an_error(kind, tmp_path):
  Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
  entry = {"filename": "a.png", "split": "test", "sentences": []}
  file = tmp_path / "dataset.json"
  file.write_text(json.dumps({"images": [entry]}))
  spec = {**CALIBRATION, "kind": kind, "path": str(tmp_path)}
  spec["captions_file"] = str(file)
  with pytest.raises(UserError, match="has no caption to ask by") as error:
    evaluate(spec, make_mesh(1))
  assert f"captions_file={str(file)!r}" in str(error.value)


def test_classification_of_unlabelled_data_is_an_error():
  source = Source()
  source.class_names = None
  spec = dict(CLASSIFICATION, data="folder")
  with pytest.raises(UserError, match="data='folder': must have labels"):
    evaluate(spec, make_mesh(1), source)


def test_mistakes_in_a_section_are_named():
  right = {"data": "tfds:colours", "path": None, "split": "test", "every": 1}
  right |= FIELDS
  wrong = {
    "a": dict(right, kind="detection"),
    "b": dict(right, **{**CLASSIFICATION, "canonicalize": 3}, colour=1),
    "c": dict(right, kind="retrieval", batch_size=0, **NO_FILE),
    "d": dict(right, kind="calibration", batch_size=1, prior=1.5, **NO_FILE),
    "e": dict(right, kind="retrieval", batch_size=1),
    "f": 3,
  }
  problems = "\n".join(evaluation_problems(wrong, "config.evals"))
  for said in (
    "config.evals.a.kind='detection': must be one of classification, ",
    "config.evals.b.canonicalize=3: must be bool",
    "config.evals.b.colour: unknown",
    "config.evals.c.batch_size=0: must be at least 1",
    "config.evals.d.prior=1.5: must lie in (0, 1)",
    "config.evals.e.captions_file: missing",
    "config.evals.f=3: must be a section",
  ):
    assert said in problems
  assert len(problems.splitlines()) == 9


def test_several_right_answers_and_classes_left_out(tmp_path):
  """Images of "green" are left out; in a file they may have two answers."""
  classes = tmp_path / "classes.json"
  classes.write_text(json.dumps({"blue": ["blue", "navy"], "red": "red"}))
  spec = dict(CLASSIFICATION, classes_file=str(classes), canonicalize=True)
  got = evaluate(spec, make_mesh(2))
  prompts = [["a blue", "blue", "photo of blue"], ["a red", "red"]]
  prompts[0] += ["a navy", "navy", "photo of navy"]
  prompts[1] += ["photo of red"]
  centers = np.stack([unit(numpy_texts(texts).mean(0)) for texts in prompts])
  predicted = (numpy_images() @ centers.T).argmax(1)
  labels = np.array([example.label for _, example in readable_examples()])
  kept = labels != 1
  expected = np.mean(predicted[kept] == np.where(labels[kept] == 2, 0, 1))
  assert got.metrics["accuracy"] == pytest.approx(expected)
  assert got.metrics["left_out"] == np.sum(~kept) > 0
  answers = tmp_path / "answers.json"
  names = [example.name for _, example in readable_examples()]
  answers.write_text(json.dumps({name: ["blue", "red"] for name in names[:9]}))
  got = evaluate(dict(spec, answers_file=str(answers)), make_mesh(2))
  assert got.metrics["accuracy"] == 1.0
  assert got.metrics["left_out"] == 9
  answers.write_text(json.dumps({"other.png": "blue"}))
  with pytest.raises(UserError, match="no image has a label of classes_file"):
    evaluate(dict(spec, answers_file=str(answers)), make_mesh(2))


CALIBRATION = dict(kind="calibration", batch_size=5, prior=None, **NO_FILE)
HEALTH = dict(kind="loss_health", batch_size=5, loss_batch_size=6, **NO_FILE)
PROBE = dict(train_split="train", **LABELS)
FEWSHOT = dict(kind="fewshot", batch_size=5, shots=(1, 5), seeds=2, l2=16.0)
LINEAR = dict(kind="linear_probe", batch_size=5, penalties=(0.01, 1.0))


KINDS = [
  CLASSIFICATION,
  dict(kind="retrieval", batch_size=5, **NO_FILE),
  {**FEWSHOT, **PROBE},
  {**LINEAR, **PROBE},
  CALIBRATION,
  HEALTH,
]


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec["kind"])
def test_every_kind_is_the_same_to_the_last_bit_on_any_devices(spec):
  one = evaluate(spec, make_mesh(1))
  for devices, fsdp in ((2, 1), (8, 2)):
    more = evaluate(spec, make_mesh(devices, fsdp))
    assert more.metrics == one.metrics
    assert more.details == one.details
  assert one.metrics["skipped"] == (2 if "train_split" in spec else 1)
  assert all(np.isfinite(value) for value in one.metrics.values())
  # Other batches: products of other shapes, which round otherwise.
  other = evaluate({**spec, "batch_size": 19}, make_mesh(1))
  assert other.metrics == pytest.approx(one.metrics, rel=1e-5)


G = int(ByteTokenizer()(["g"], 2)[0, 0])  # In "green", and in no other name.


def spoil(vectors, inputs):
  """Makes NaN of bright images, and infinity of texts with a "g"."""
  if inputs.ndim == 4:
    return jnp.where(inputs[:, :1, 0, 0] > 150, jnp.nan, vectors)
  return jnp.where((inputs == G).any(1, keepdims=True), jnp.inf, vectors)


def spoiled():
  """Returns which images are, and which captions, with their images."""
  images, texts, owners = [], [], []
  for index, example in readable_examples():
    pixels = np.asarray(Image.open(io.BytesIO(example.image)))
    images.append(pixels[0, 0, 0] > 150)
    texts += ["g" in text for text in example.texts]
    owners += [index] * len(example.texts)
  return np.array(images), np.array(texts), np.array(owners)


def test_retrieval_ranks_no_embedding_that_is_not_finite(caplog):
  spec = dict(kind="retrieval", batch_size=5, **NO_FILE)
  with caplog.at_level(logging.WARNING):
    got = evaluate(spec, make_mesh(2), spoil=spoil).metrics
  bad_images, bad_texts, owners = spoiled()
  assert 0 < bad_images.sum() < 9 and 0 < bad_texts.sum() < 17
  assert got["nonfinite"] == bad_images.sum() + bad_texts.sum()
  said = f"{bad_images.sum()} of 18 image embeddings are not finite"
  assert said in caplog.text
  assert f"{bad_texts.sum()} of 37 text embeddings are not" in caplog.text
  assert "'green 10'" in caplog.text
  ids = np.array([index for index, _ in readable_examples()])
  texts = [text for _, e in readable_examples() for text in e.texts]
  similarities = numpy_images() @ numpy_texts(texts).T
  for name, bad, others, queries, candidates, table in (
    ("image_to_text", bad_images, bad_texts, ids, owners, similarities),
    ("text_to_image", bad_texts, bad_images, owners, ids, similarities.T),
  ):
    for k in (1, 5):
      of_good = slow_recall(
        table[~bad][:, ~others], queries[~bad], candidates[~others], k
      )
      expected = of_good * np.mean(~bad)  # The others find nothing.
      assert got[f"{name}/recall@{k}"] == pytest.approx(expected)


def test_a_class_that_is_not_finite_takes_no_image():
  got = evaluate(CLASSIFICATION, make_mesh(2), spoil=spoil)
  bad_images, _, _ = spoiled()
  assert got.metrics["nonfinite"] == bad_images.sum() + len(TEMPLATES)
  centers = [
    unit(numpy_texts([t.format(name) for t in TEMPLATES]).mean(0))
    for name in ("red", "blue")
  ]
  nearest = np.array([0, 2])[(numpy_images() @ np.stack(centers).T).argmax(1)]
  labels = np.array([example.label for _, example in readable_examples()])
  right = (nearest == labels) & ~bad_images
  assert got.metrics["accuracy"] == pytest.approx(np.mean(right))
  assert 0 < np.mean(right) < 1


@pytest.mark.parametrize(
  "spec", [{**FEWSHOT, **PROBE}, {**LINEAR, **PROBE}], ids=lambda s: s["kind"]
)
def test_features_that_are_not_finite_teach_nothing(spec):
  got = evaluate(spec, make_mesh(1), spoil=spoil).metrics
  assert got["nonfinite"] > spoiled()[0].sum()  # Of both splits.
  assert got["skipped"] == 2
  most = np.mean(~spoiled()[0])
  of = [got[name] for name in got if name.startswith("accuracy")]
  assert all(0 < value <= most for value in of)


@pytest.mark.parametrize("spec", [CALIBRATION, HEALTH], ids=lambda s: s["kind"])
def test_pairs_that_are_not_finite_are_left_out(spec):
  got = evaluate(spec, make_mesh(2), spoil=spoil)
  bad_images, bad_texts, _ = spoiled()
  assert got.metrics["nonfinite"] == bad_images.sum() + bad_texts.sum()
  assert got.metrics["skipped"] == 1
  assert all(np.isfinite(value) for value in got.metrics.values())
  if spec is HEALTH:
    logits, together = numpy_pairs()
    good = together[~bad_images][:, ~bad_texts]
    of = logits[~bad_images][:, ~bad_texts][good]
    assert got.metrics["positive/mean"] == pytest.approx(of.mean(), rel=1e-5)


def test_a_model_of_no_finite_embedding_is_told():
  every = lambda vectors, inputs: vectors * jnp.nan  # noqa: E731
  with pytest.raises(UserError, match="none of its embeddings is finite"):
    evaluate(CALIBRATION, make_mesh(1), spoil=every)
  spec = dict(kind="retrieval", batch_size=5, **NO_FILE)
  assert evaluate(spec, make_mesh(1), spoil=every).metrics[
    "image_to_text/recall@10"
  ] == 0  # fmt: skip


def numpy_pairs():
  """Returns logits of all pairs and which belong together."""
  owners, texts = [], []
  for place, (_, example) in enumerate(readable_examples()):
    texts += example.texts
    owners += [place] * len(example.texts)
  logits = SCALE * numpy_images() @ numpy_texts(texts).T + BIAS
  return logits, np.arange(18)[:, None] == np.array(owners)


def test_loss_health_equals_plain_numpy():
  got = evaluate(HEALTH, make_mesh(4))
  logits, together = numpy_pairs()
  expected = {}
  for name, sign, mask, pairs in (
    ("positive", 1, together, 1),
    ("negative", -1, ~together, 5),
  ):
    of = logits[mask]
    expected |= {
      f"{name}/mean": of.mean(),
      f"{name}/std": of.std(),
      f"{name}/wrong": np.mean(sign * of <= 0),
      f"{name}/loss": pairs * np.mean(np.log1p(np.exp(-sign * of))),
    }
    assert sum(got.details[name]) == mask.sum()
  expected["loss"] = expected["positive/loss"] + expected["negative/loss"]
  expected |= {"scale": SCALE, "bias": BIAS, "skipped": 1.0}
  expected |= {"duplicates/captions": 0.0, "duplicates/images": 0.0}
  assert got.metrics == pytest.approx(expected, rel=1e-5)
  np.testing.assert_allclose(
    got.details["positive"],
    np.histogram(logits[together], got.details["edges"])[0],
  )


def test_calibration_refits_on_the_other_half():
  got = evaluate(dict(CALIBRATION, prior=0.5), make_mesh(2)).metrics
  assert got["prior"] == pytest.approx(0.5)
  assert (got["scale"], got["bias"]) == (SCALE, BIAS)
  # Images by their number in the source: the damaged one is number 5.
  numbers = np.array([index for index, _ in readable_examples()])
  logits, together = numpy_pairs()
  rows = numbers % 2 == 1
  columns = together[rows].any(0)
  logits = logits[rows][:, columns]
  together = together[rows][:, columns]
  weight = np.where(together, 0.5 / together.sum(), 0.5 / (~together).sum())
  p = 1 / (1 + np.exp(-logits))
  brier = (weight * (p - together) ** 2).sum()
  assert got["brier"] == pytest.approx(brier, rel=1e-5)


def test_health_of_fewer_images_than_a_batch_is_an_error():
  with pytest.raises(UserError, match="loss_batch_size=60: must be at most"):
    evaluate(dict(HEALTH, loss_batch_size=60), make_mesh(1))


def test_a_model_has_scale_bias_and_features():
  model = SigLIP(model_cases.model_config())
  params = model_cases.random_params(model)
  params["logit_scale"] = np.float32(np.log(12.0))
  mesh = make_mesh(2)
  embedders = make_embedders(model, mesh)
  scale, bias = embedders.logits(params)
  assert scale == pytest.approx(12.0)
  assert bias == params["logit_bias"]
  size = model.config.image.image_size
  image = np.random.default_rng(0).integers(
    0, 255, (4, size, size, 3), np.uint8
  )
  features, _ = embedders.features(params, image, {})
  embedding, _ = embedders.image(params, image, {})
  np.testing.assert_allclose(unit(np.array(features)), embedding, atol=1e-6)
  assert not np.allclose(features, embedding)


def test_slices_of_a_cpu_change_no_bit_with_the_devices(monkeypatch):
  model = SigLIP(model_cases.model_config())
  params = model_cases.random_params(model)
  size = model.config.image.image_size
  image = np.random.default_rng(0).integers(
    0, 255, (40, size, size, 3), np.uint8
  )
  plain = make_embedders(model, make_mesh(1)).image(params, image, {})[0]
  patch = resolve_image(model.config.image).patch_size
  monkeypatch.setattr(slices, "_CACHED_TOKENS", 2 * (size // patch) ** 2)
  found = []
  for devices in (1, 2, 8):  # 5 images each: slices of 2, 2 and 1.
    embed = make_embedders(model, make_mesh(devices)).image
    rows = np.split(image, 40 // (5 * devices))
    found.append(np.concatenate([embed(params, x, {})[0] for x in rows]))
    np.testing.assert_array_equal(found[-1], found[0])
  np.testing.assert_allclose(found[0], plain, atol=1e-6)


def test_photos_are_classified_by_wordnet_id(shared_data, tmp_path):
  """Labels from a column and from a file of answers are the same ones."""
  photos = shared_data / "photos"
  with (photos / "labels.csv").open() as file:
    rows = list(csv.DictReader(file))[::20]
  (tmp_path / "images").symlink_to(photos)
  with (tmp_path / "captions.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["image", "caption", "wordnet_id"])
    writer.writerows([r["image"], r["name"], r["wordnet_id"]] for r in rows)
  labels = [row["wordnet_id"] for row in rows]
  root = pathlib.Path(__file__).resolve().parents[1]
  imagenet = root / "configs" / "classes" / "imagenet.json"
  named = json.loads(imagenet.read_text())
  classes, answers = tmp_path / "classes.json", tmp_path / "answers.json"
  classes.write_text(json.dumps({label: named[label] for label in labels}))
  answers.write_text(
    json.dumps({row["image"]: row["wordnet_id"] for row in rows})
  )
  spec = dict(
    CLASSIFICATION,
    templates=(),
    templates_file=str(root / "configs" / "prompts" / "clip_best.txt"),
    classes_file=str(classes),
    canonicalize=True,
    batch_size=16,
  )
  found = []
  for changes, options in (
    ({"label_key": "wordnet_id"}, Options(label_key="wordnet_id")),
    ({"answers_file": str(answers)}, Options()),
  ):
    source = open_source("folder", "all", str(tmp_path), options)
    assert len(source) == 40
    found.append(evaluate({**spec, **changes}, make_mesh(2), source))
  assert found[0][:2] == found[1][:2]
  assert found[0].rows() == found[1].rows()
  assert found[0].details["classes"] == [named[label] for label in labels]
  assert found[0].metrics["left_out"] == found[0].metrics["skipped"] == 0
  # With the whole of ImageNet's classes the labels do not match.
  changes = dict(classes_file=str(imagenet), label_key="wordnet_id")
  options = Options(label_key="wordnet_id")
  source = open_source("folder", "all", str(tmp_path), options)
  with pytest.raises(UserError, match="has 960 labels that the data set does"):
    evaluate({**spec, **changes}, make_mesh(1), source)


def test_captions_in_two_languages_are_searched_apart(tmp_path):
  """The images of XM3600's file; one of them has no caption in French."""
  lines, images, owners = [], [], {"en": [], "fr": []}
  texts = {"en": [], "fr": []}
  for number in range(6):
    example = Source()[number if number != CORRUPT else 17]
    (tmp_path / f"k{number}.jpg").write_bytes(example.image)
    images.append(example.image)
    line = {"image/key": f"k{number}"}
    for language in ("en", "fr"):
      found = [f"{language} {text}" for text in example.texts]
      found = found if (language, number) != ("fr", 3) else []
      line[language] = {"caption": found}
      texts[language] += found
      owners[language] += [number] * len(found)
    lines.append(json.dumps(line) + "\n")
  (tmp_path / "captions.jsonl").write_text("".join(lines))
  spec = dict(
    NO_FILE,
    kind="retrieval",
    batch_size=4,
    path=str(tmp_path),
    captions_file=str(tmp_path / "captions.jsonl"),
  )
  got = evaluate(spec, make_mesh(2)).metrics
  pixels = [np.asarray(Image.open(io.BytesIO(data))) for data in images]
  flat = np.stack(pixels).reshape(6, -1) / 255.0 - 0.4
  image = unit(flat @ make_params()["image"])
  for language in ("en", "fr"):
    similarities = image @ numpy_texts(texts[language]).T
    of_text, asked = owners[language], sorted(set(owners[language]))
    for name, found in (
      ("image_to_text", (similarities[asked], asked, of_text)),
      ("text_to_image", (similarities.T, of_text, range(6))),
    ):
      expected = slow_recall(*found, 1)
      key = f"{name}/recall@1"
      assert got[f"{language}/{key}"] == pytest.approx(expected)
      mean = (got[f"en/{key}"] + got[f"fr/{key}"]) / 2
      assert got[key] == pytest.approx(mean)
  only = evaluate(dict(spec, language="fr"), make_mesh(2)).metrics
  assert only["text_to_image/recall@1"] == got["fr/text_to_image/recall@1"]
  for line in ("image_to_text", "text_to_image"):
    assert got[f"{line}/recall@5"] > 0


def test_a_model_is_evaluated_where_its_kernel_is_not():
  """A run on a GPU or a TPU names it; the same model embeds on a CPU."""
  for name, expected in (("cudnn", "auto"), ("short", "auto"), ("xla", "xla")):
    config = model_cases.model_config(attention=name, dtype="bfloat16")
    exact = exact_model(config)
    assert (exact.attention, exact.dtype) == (expected, "float32")
    model, mesh = SigLIP(exact), sharding.make_mesh()
    image, _ = model_cases.example_inputs(config, batch=8)
    params = model_cases.random_params(model)
    embeddings, _ = make_embedders(model, mesh).image(params, image, {})
    assert np.isfinite(embeddings).all()
