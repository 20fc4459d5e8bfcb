"""What programs ask of the page: search, embeddings, classifiers, state."""

import base64
import html
import json
import pathlib
import re
import time

import numpy as np
import pages
from pages import ask, form, serve_here
import pytest
import runs

from big_siglip import durations
from big_siglip.page.firsts import FirstTimes
from big_siglip.trained.classifier import Description, Head, softmax

SCHEMA = json.loads((runs.ROOT / "big_siglip/page/schema.json").read_text())[
  "$defs"
]
TYPES = {
  "object": dict,
  "array": list,
  "string": str,
  "boolean": bool,
  "integer": int,
  "number": int | float,
  "null": type(None),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  return pages.make_place(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def head():
  rng = np.random.default_rng(0)
  weights, bias = rng.normal(size=(32, 3)), rng.normal(size=3)
  about = Description(
    labels=["a", "b", "<c>"],
    checkpoint="x",
    image_tower="",
    pixels={},
    data="birds",
    images=9,
    l2=1.0,
    measured={"accuracy": 0.5, "per_class": 0.5, "images": 4},
  )
  return Head(np.float32(weights), np.float32(bias), about)


@pytest.fixture(scope="module")
def port(place, head):
  with serve_here(place, place.vectors, heads={"birds": head}) as port:
    yield port


def post(port, path, **fields):
  """Returns the answer, which is as the schema says."""
  images = [
    (one.name, one.read_bytes()) if isinstance(one, pathlib.Path) else one
    for one in fields.pop("images", ())
  ]
  status, _, answer = ask(port, "POST", path, *form(images, **fields))
  assert_conforms(answer, SCHEMA[path if status == 200 else "error"], path)
  return status, answer


def assert_conforms(value, schema, where):
  """Checks a value against as much of JSON Schema as ours uses."""
  if "$ref" in schema:
    name = schema["$ref"].removeprefix("#/$defs/")
    assert_conforms(value, SCHEMA[name], where)
  kinds = schema.get("type", [])
  kinds = [kinds] if isinstance(kinds, str) else kinds
  assert not kinds or any(isinstance(value, TYPES[k]) for k in kinds), where
  assert value in schema.get("enum", [value]), where
  assert value == schema.get("const", value), where
  if isinstance(value, dict):
    assert set(schema.get("required", ())) <= set(value), where
    assert len(value) <= schema.get("maxProperties", len(value)), where
    for name, own in schema.get("properties", {}).items():
      if name in value:
        assert_conforms(value[name], own, f"{where}.{name}")
  if isinstance(value, list):
    for one in value:
      assert_conforms(one, schema.get("items", {}), f"{where}[]")


def keys(query):
  return [row["key"] for row in query["results"]]


def ranked(place, vector, without=()):
  order = (-(place.rows @ vector)).argsort()
  return [place.keys[i] for i in order if place.keys[i] not in without]


@pytest.mark.parametrize("index", ["exact", "hnsw"])
def test_queries_of_all_kinds_are_answered_each(place, index):
  with serve_here(place, place.vectors, index=index) as port:
    file = place.photos / "red.png"
    status, answer = post(
      port, "/api/search", images=[file], query=["a tree\na sky"], like=["2"]
    )
    assert ask(port, "GET", "/healthz")[2]["search"]["index"] == index
  assert status == 200, answer
  sentence, other, image, like = answer["queries"]
  texts = place.model.embed_texts(["a tree", "a sky"])
  liked = [place.keys[2]]
  assert sentence["parts"] == [{"text": "a tree"}]
  assert keys(sentence) == ranked(place, texts[0], liked)
  assert keys(other) == ranked(place, texts[1], liked)
  assert image["parts"] == [{"image": "red.png"}]
  assert keys(image)[0] == "red.png"
  assert like["parts"][0]["like"]["key"] == place.keys[2]
  assert keys(like) == ranked(place, place.rows[2], liked)
  # An image and a text alone are what the model was trained to judge.
  assert None not in [row["probability"] for row in sentence["results"]]
  for query in (image, like):
    assert {row["probability"] for row in query["results"]} == {None}


def test_the_mean_of_queries_is_one_query(port, place):
  file = place.photos / "red.png"
  status, answer = post(
    port, "/api/search", images=[file], query=["a tree"], combine=["mean"]
  )
  assert status == 200
  (query,) = answer["queries"]
  assert query["parts"] == [{"text": "a tree"}, {"image": "red.png"}]
  rows = [place.model.embed_texts(["a tree"])[0]]
  rows.append(place.model.embed_images([file])[0])
  mean = np.mean(rows, axis=0)
  mean /= np.linalg.norm(mean)
  assert keys(query) == ranked(place, mean)
  assert query["results"][0]["score"] == pytest.approx(
    float((place.rows @ mean).max()), abs=1e-5
  )


def test_a_result_has_captions_and_columns(port):
  _, answer = post(
    port, "/api/search", query=["a"], where=["key like 'red%'"], top=["5"]
  )
  (row,) = answer["queries"][0]["results"]
  assert row["captions"] == list(pages.CAPTIONS)
  assert row["key"] == "red.png" and row["image"] == "api/images/0"


def test_an_image_that_cannot_be_read_is_named(port):
  status, answer = post(port, "/api/search", images=[("x.png", b"none")])
  assert status == 400
  assert answer["error"].startswith("x.png: is no image that can be read")


def test_embeddings_are_those_of_the_model(port, place):
  files = [place.photos / "red.png", ("bad.png", b"none")]
  texts = ["a tree", "👋"]
  status, answer = post(port, "/api/embed", images=files, texts=texts)
  assert status == 200
  expected = place.model.embed_texts(texts)
  np.testing.assert_allclose(answer["texts"], expected, atol=1e-6)
  good, bad = answer["images"]
  expected = place.model.embed_images(files[:1])[0]
  np.testing.assert_allclose(good["embedding"], expected, atol=1e-6)
  assert bad["name"] == "bad.png" and "embedding" not in bad and bad["error"]
  cosine = np.dot(good["embedding"], answer["texts"][0])
  logit = answer["logit_scale"] * cosine + answer["logit_bias"]
  expected = place.model.logits(files[:1], texts[:1])[0, 0]
  assert logit == pytest.approx(float(expected), rel=1e-4)
  _, packed = post(port, "/api/embed", texts=texts, format=["base64"])
  rows = [np.frombuffer(base64.b64decode(x), "<f4") for x in packed["texts"]]
  np.testing.assert_allclose(rows, answer["texts"], atol=1e-6)


def test_a_map_is_what_segment_asks_each_patch(port, place):
  """Before it is enlarged; the image is 90 pixels wide and 60 high."""
  file, labels = place.photos / "red.png", ["a tree", "<b>sky</b>", "x"]
  fields = dict(images=[file], labels=labels)
  status, answer = post(port, "/api/maps", **fields)
  assert status == 200, answer
  model = place.model
  (patches,) = model.embed_patches([file], kind="text")
  texts = model.embed_texts(labels)
  expected = model.logit_scale * (patches @ texts.T) + model.logit_bias
  found = np.moveaxis(np.array(answer["logits"]), 0, -1)
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert found.std() > 1e-3, "else nothing is seen of it"
  assert answer["labels"] == labels and answer["size"] == [90, 60]
  assert answer["box"] == [0, 0, 1, 1]
  (pixels,) = model.segment([file], labels)
  rows, columns = found.shape[:2]
  top, bottom = pixels[:1, :1], pixels[-1:, -1:]  # As the corners' patches.
  for corner, at in ((top, (0, 0)), (bottom, (rows - 1, columns - 1))):
    shares = 1 / (1 + np.exp(-found[at]))
    np.testing.assert_allclose(corner[0, 0], shares, rtol=1e-3)
  _, one = post(port, "/api/maps", **fields, of=["x"])
  assert one["logits"] == answer["logits"][2:] and one["labels"] == ["x"]
  state = ask(port, "GET", "/healthz")[2]["maps"]
  assert state == {"grid": [rows, columns]}


def test_a_label_of_several_names_has_one_map(port, place):
  file = place.photos / "red.png"
  labels = [json.dumps({"0": ["a tree", "an oak"], "1": "a sky"})]
  _, answer = post(port, "/api/maps", images=[file], labels=labels)
  (patches,) = place.model.embed_patches([file], kind="text")
  texts = place.model.embed_classes([["a tree", "an oak"], ["a sky"]])
  model = place.model
  expected = model.logit_scale * (patches @ texts.T) + model.logit_bias
  found = np.moveaxis(np.array(answer["logits"]), 0, -1)
  np.testing.assert_allclose(found, expected, atol=1e-4)


ONE = [("x.png", b"none")]


@pytest.mark.parametrize(
  ("fields", "status", "said"),
  [
    ({"labels": ["a"]}, 400, "images: 0; must be one"),
    ({"images": ONE * 2, "labels": ["a"]}, 400, "images: 2; must be one"),
    ({"images": ONE}, 400, "labels: give at least one"),
    ({"images": ONE, "labels": ["a"]}, 400, "x.png: is no image that can be"),
    (
      {"images": ONE, "labels": ["a"], "of": ["b"]},
      400,
      "of='b': is none of the labels",
    ),
    (
      {"images": ONE, "labels": list(map(str, range(65)))},
      413,
      "of: 65 maps; at most 64",
    ),
    ({"images": ONE, "labels": ["x" * 301]}, 400, "label 'xxxx"),
  ],
)
def test_bad_requests_for_maps_are_one_line(port, fields, status, said):
  found, answer = post(port, "/api/maps", **fields)
  assert found == status and answer["error"].startswith(said), answer


def test_a_tower_with_a_class_token_has_maps(tmp_path):
  place = pages.make_place(tmp_path, pooling="cls")
  with serve_here(place) as port:
    status, answer = post(
      port, "/api/maps", images=[place.photos / "red.png"], labels=["a"]
    )
    state = ask(port, "GET", "/healthz")[2]
  assert_conforms(state, SCHEMA["/healthz"], "healthz")
  assert status == 200
  side, _ = state["maps"]["grid"]
  assert np.shape(answer["logits"]) == (1, side, side)


@pytest.mark.parametrize(
  ("fields", "status", "said"),
  [
    ({}, 400, "texts, images: give at least one"),
    ({"texts": ["a"], "format": ["hex"]}, 400, "format='hex': must be list or"),
    ({"texts": ["x" * 301]}, 400, "texts[0]: longer than 300 characters"),
    ({"texts": ["a"] * 1_001}, 413, "texts: 1,001; at most 1,000"),
    ({"images": [("x", b"?")]}, 400, "x: is no image that can be read"),
  ],
)
def test_bad_requests_for_embeddings_are_one_line(port, fields, status, said):
  found, answer = post(port, "/api/embed", **fields)
  assert found == status and answer["error"].startswith(said), answer


def test_a_kept_classifier_judges(port, place, head):
  files = [place.photos / "red.png", place.photos / "blue.png"]
  status, answer = post(
    port, "/api/classify", images=files, classifier=["birds"]
  )
  assert status == 200
  assert answer["labels"] == ["a", "b", "<c>"]
  expected = softmax(head.logits(place.model.embed_images(files)))
  for image, row in zip(answer["images"], expected, strict=True):
    found = [score["softmax"] for score in image["scores"]]
    np.testing.assert_allclose(found, row, rtol=1e-4)
    assert {score["probability"] for score in image["scores"]} == {None}
  status, answer = post(port, "/api/classify", images=files, classifier=["x"])
  assert status == 400
  assert answer["error"] == "classifier='x': there is no such one, but 'birds'"


def test_the_state_is_as_the_schema_says(port):
  answer = ask(port, "GET", "/healthz")[2]
  assert_conforms(answer, SCHEMA["/healthz"], "healthz")
  assert answer["search"]["columns"]["key"] == "string"
  assert answer["classifiers"]["birds"]["measured"]["accuracy"] == 0.5
  headers, text = ask(port, "GET", "/schema.json")[1:]
  assert headers["Content-Type"] == "application/schema+json"
  assert json.loads(text)["$defs"] == SCHEMA


def test_the_examples_for_programs_run(port, place, tmp_path):
  """Of the page at /api, and of its documentation."""
  text = html.unescape(ask(port, "GET", "/api")[2].decode())
  examples = re.findall(r"^(?:<pre.*>)?curl (.*?)(?:</pre>)?$", text, re.M)
  assert len(examples) == 11
  documented = (runs.ROOT / "docs" / "page.md").read_text()
  for example in examples:
    assert f"curl {example}" in documented
    if "width" not in example and "like=17" not in example:
      assert _curl(port, place, example) == 200, example


def _curl(port, place, arguments):
  """Asks as curl would, for the arguments of our examples."""
  address = re.search(r'"?\$PAGE(/[^\s"]*)', arguments)[1]
  fields, images = {}, []
  for name, value in re.findall(r"-F (\w+)=('[^']*'|\S+)", arguments):
    if value.startswith("@"):
      images.append((value, (place.photos / "red.png").read_bytes()))
    else:
      fields.setdefault(name, []).append(value.strip("'"))
  if not fields and not images:
    return ask(port, "GET", address)[0]
  return post(port, address, images=images, **fields)[0]


def test_what_compiles_is_told_with_its_last_time(place, tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
  monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
  firsts = FirstTimes(place.model)
  with firsts.watch("images", 4):
    assert firsts.now == {"what": "4 images", "seconds": 0.0, "last": None}
    time.sleep(0.2)
    assert firsts.now["seconds"] >= 0.2
  assert firsts.now is None
  with firsts.watch("images", 4):
    assert firsts.now is None, "it was compiled already"
  again = FirstTimes(place.model)  # As the next server.
  with pytest.raises(ZeroDivisionError), again.watch("images", 4):
    assert again.now["last"] == pytest.approx(0.2, abs=0.15)
    raise ZeroDivisionError
  with again.watch("images", 4):
    assert again.now["what"] == "4 images", "it failed before"
  assert (tmp_path / "durations.json").exists()
  assert durations.last("none") is None
