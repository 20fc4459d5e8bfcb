"""What labelled images teach: calibrations and classifiers that are kept."""

import csv
import dataclasses
import json
import shutil

import jax
import model_cases
import numpy as np
from PIL import Image
import programs
import pytest
from sklearn.linear_model import LogisticRegression

import big_siglip
from big_siglip.errors import UserError
from big_siglip.evaluators import calibration
from big_siglip.evaluators.embed import Rows
from big_siglip.evaluators.pairs import Pairs
from big_siglip.labels import probing
from big_siglip.labels.images import Labelled
from big_siglip.models import SigLIP
from big_siglip.trained import calibrated, classifier

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
TEMPLATE = "a photo of {}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with a model, and one of ten photos of each colour."""
  folder = tmp_path_factory.mktemp("teaching")
  config = model_cases.model_config({}, dict(vocab_size=259, length=24))
  params = jax.device_put(model_cases.random_params(SigLIP(config)))
  data = {"tokenizer": "bytes", "lowercase": True, "clean": "none", "pad_id": 1}
  data["resize"] = "bilinear"
  model_cases.save_model(folder / "made", params, config, data)
  rng = np.random.default_rng(0)
  for name, colour in COLOURS.items():
    (folder / "photos" / name).mkdir(parents=True)
    for number in range(10):
      pixels = rng.normal(colour, 50, (20, 20, 3)).clip(0, 255)
      image = Image.fromarray(pixels.astype(np.uint8))
      image.save(folder / "photos" / name / f"{number}.png")
  (folder / "photos" / "red" / "broken.png").write_text("no image")
  made = _with_words_for_colours(big_siglip.load(str(folder / "made")), folder)
  model_cases.save_model(folder / "model", made, config, data)
  return folder


def _with_words_for_colours(model, folder):
  """Returns parameters whose texts of a colour lie near its photos."""
  images = model.embed_images(files_of(folder)).reshape(3, 10, -1).mean(1)
  wanted = images - images.mean(0)
  head = model.params["text"]["head"]
  width = head["kernel"].shape[0]
  plain = {"kernel": np.eye(width, dtype=np.float32), "bias": 0 * head["bias"]}
  text = {**model.params["text"], "head": plain}
  bare = dataclasses.replace(model, params={**model.params, "text": text})
  words = bare.embed_texts([TEMPLATE.replace("{}", c) for c in sorted(COLOURS)])
  kernel = np.linalg.pinv(words.astype(np.float64)) @ wanted
  text["head"] = {**plain, "kernel": kernel.astype(np.float32)}
  return {**model.params, "text": text}


def files_of(place):
  return sorted((place / "photos").glob("*/[0-9].png"))


def call(command, *arguments):
  """Returns standard output and standard error of a program that succeeds."""
  status, output, said = programs.call(f"tools/{command}.py", *arguments)
  assert status == 0, said
  return output, said


@pytest.fixture(scope="module")
def kept(place):
  """The same model with a calibration beside it, and what it said."""
  folder = place / "calibrated"
  shutil.copytree(place / "model", folder)
  flags = [f"--images={place}/photos", f"--template={TEMPLATE}", "--json"]
  output, said = call("calibrate", f"--checkpoint={folder}", *flags)
  assert "1 of 31 images skipped" in said
  return folder, json.loads(output)


@pytest.fixture(scope="module")
def taught(place):
  """A classifier of the model, and what was said of it."""
  folder = place / "classifier"
  flags = [f"--images={place}/photos", f"--output={folder}", "--json"]
  output, _ = call("probe", f"--checkpoint={place}/model", *flags)
  return folder, json.loads(output)


def test_a_calibration_is_the_likeliest_and_is_used_by_who_loads(place, kept):
  folder, said = kept
  bare = big_siglip.load(str(folder), calibration="none")
  model = big_siglip.load(str(folder))
  assert bare.calibration is None
  assert (model.logit_scale, model.logit_bias) == (said["scale"], said["bias"])
  assert (said["images"], said["prior"]) == (30, 1 / 3)
  files = files_of(place)
  texts = bare.embed_texts([TEMPLATE.replace("{}", c) for c in sorted(COLOURS)])
  cosines = bare.embed_images(files) @ texts.T
  right = np.array(
    [[f.parent.name == c for c in sorted(COLOURS)] for f in files]
  )
  # Scikit-learn's, with the same doubt: each pair counts as both.
  doubt = np.where(right, 1 / (30 + 2), 1 / (60 + 2)).ravel()
  fitted = LogisticRegression(C=np.inf, tol=1e-9, solver="newton-cholesky").fit(
    np.tile(cosines.ravel(), 2)[:, None],
    np.concatenate([right.ravel(), ~right.ravel()]),
    sample_weight=np.concatenate([1 - doubt, doubt]),
  )
  assert said["scale"] == pytest.approx(fitted.coef_[0, 0], rel=2e-3)
  assert said["bias"] == pytest.approx(fitted.intercept_[0], rel=2e-3)
  measured = said["measured"]
  assert measured["calibrated"]["log_loss"] < measured["trained"]["log_loss"]
  labels = ",".join(sorted(COLOURS))
  flags = [f"--labels={labels}", f"--template={TEMPLATE}", "--json", "--top=3"]
  output, noted = call("classify", f"--checkpoint={folder}", *flags, files[0])
  scores = json.loads(output)["scores"]
  for number, colour in enumerate(sorted(COLOURS)):
    logit = said["scale"] * cosines[0, number] + said["bias"]
    expected = 1 / (1 + np.exp(-logit))
    assert scores[colour]["probability"] == pytest.approx(expected, rel=1e-3)
  assert f"note: calibrated on {place}/photos, split all (30 images" in noted
  flags[1] = "--template={}"
  _, noted = call("classify", f"--checkpoint={folder}", *flags, files[0])
  assert f"calibrated with other templates ('{TEMPLATE}')" in noted
  flags.append("--calibration=none")
  _, noted = call("classify", f"--checkpoint={folder}", *flags, files[0])
  assert programs.without_progress(noted) == ""


def test_a_calibration_of_other_parameters_is_not_used(place, kept, tmp_path):
  other = tmp_path / "other"
  shutil.copytree(place / "model", other)
  written = json.loads((kept[0] / calibrated.NAME).read_text())
  written["trained"]["logit_bias"] += 1e-6
  (other / calibrated.NAME).write_text(json.dumps(written))
  assert big_siglip.load(str(other)).calibration is None
  flags = [f"--checkpoint={other}", "--labels=a,b", files_of(place)[0]]
  _, said = call("classify", *flags)
  assert "is of other parameters than" in said
  with pytest.raises(UserError, match="is of other parameters than"):
    file = str(other / calibrated.NAME)
    big_siglip.load(str(place / "model"), calibration=file)
  (other / calibrated.NAME).write_text('{"scale": -1}')
  with pytest.raises(UserError, match="is no calibration"):
    big_siglip.load(str(other))


def test_a_fit_with_doubt_is_finite_where_a_threshold_tells_all():
  image = np.eye(4, dtype=np.float32)
  pairs = Pairs(image, np.arange(4), image, np.arange(4))
  weights = calibration.weigh(pairs, None)
  doubt = calibration.doubt_of(pairs)
  scale, bias = calibration.fit(pairs, weights, (10.0, -5.0), doubt)
  # All right pairs have the cosine 1, and all wrong ones 0.
  assert 1 / (1 + np.exp(-bias)) == pytest.approx(1 / 14, rel=1e-3)
  assert 1 / (1 + np.exp(-scale - bias)) == pytest.approx(5 / 6, rel=1e-3)


def test_pairs_of_several_images_with_one_id_are_counted():
  rows = np.zeros((5, 2), np.float32)
  pairs = Pairs(rows, np.array([0, 0, 1, 2, 2]), rows[:3], np.array([0, 2, 7]))
  assert pairs.num_positive == 4
  assert pairs.num_negative == 11


def test_captions_calibrate_too_and_a_softmax_model_gets_a_sigmoid(
  place, tmp_path
):
  for number, file in enumerate(files_of(place)[::3]):
    shutil.copy(file, tmp_path / f"{number}.png")
    text = TEMPLATE.replace("{}", file.parent.name) + "." * number
    (tmp_path / f"{number}.txt").write_text(text)
  folder = tmp_path / "model"
  model = big_siglip.load(str(place / "model"))
  params = {**model.params, "logit_bias": np.float32(0)}
  data = model.config.data.to_dict()
  model_cases.save_model(folder, params, model.config.model, data)
  asked = ["--labels=a,b", "--threshold=0.3", files_of(place)[0]]
  line = programs.said_in_one_line(
    "tools/classify.py", f"--checkpoint={folder}", *asked
  )
  assert "--threshold=0.3: " in line and "trained without a sigmoid" in line
  flags = [f"--checkpoint={folder}", f"--images={tmp_path}", "--json"]
  output, _ = call("calibrate", *flags)
  assert json.loads(output)["texts"] == 10
  call("classify", f"--checkpoint={folder}", *asked)


def test_a_classifier_says_what_it_learnt(place, taught):
  folder, said = taught
  assert said["labels"] == ["blue", "green", "red"]
  measured = said["measured"]
  assert said["images"] == measured["images"] == 30
  assert measured["low"] < measured["accuracy"] <= measured["high"] <= 1
  assert len(said["wrong"]) == round(30 * (1 - measured["accuracy"]))
  files = files_of(place)
  model = big_siglip.load(str(place / "model"))
  kept = model.classifier(str(folder))
  found = kept.probabilities(files)
  np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
  names = [file.parent.name for file in files]
  assert np.mean(np.array(kept.predict(files)) == names) > 0.9
  # Scikit-learn's regression on the same embeddings.
  x = model.embed_images(files).astype(np.float64)
  scaled = (x - x.mean(0)) / (x.std(0) + 1e-5)
  expected = LogisticRegression(C=1 / (30 * said["l2"]), tol=1e-10)
  expected.fit(scaled, names)
  np.testing.assert_allclose(found, expected.predict_proba(scaled), atol=5e-3)
  output, noted = call(
    "classify",
    f"--checkpoint={place}/model",
    f"--classifier={folder}",
    "--format=csv",
    *files[:2],
  )
  head, *rows = csv.reader(output.splitlines())
  assert head == ["image", "blue", "green", "red"]
  assert [row[0] for row in rows] == list(map(str, files[:2]))
  np.testing.assert_allclose(
    np.array(rows)[:, 1:].astype(float), found[:2], rtol=1e-3, atol=1e-6
  )
  assert "note: classifier of 3 labels, learnt from" in noted


def test_every_fifth_image_of_a_label_is_held_out():
  labels = np.array([0] * 7 + [1] * 3 + [2])
  folds = probing.divide(labels)
  assert folds.tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1, 2, -1]


def test_each_image_is_judged_by_what_it_did_not_teach(place):
  """Labels that nothing tells cannot be right more often than by chance."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((200, 64)).astype(np.float32)
  labels = np.arange(200) % 4
  names = (("a",), ("b",), ("c",), ("d",))
  rows = Rows("image", lambda: (), lambda i: f"{i}.png", 201)
  images = Labelled(x, labels, np.arange(1, 201), names, 1, 0, rows)
  tower = {"image_tower": "", "pixels": {}}
  head, tested = probing.learn(images, "data", "model", tower)
  measured = head.description.measured
  assert measured["low"] < 0.25 < measured["high"]
  # All of them, once it has seen them.
  assert (head.logits(x).argmax(1) == labels).mean() > 0.5
  table = probing.rows(images, tested)
  assert table["key"][1] == "1.png" and table["label"][1] == "a"
  assert table["right"][0] is None and table["note"][0].startswith("cannot")
  right = [value for value in table["right"][1:]]
  assert np.mean(right) == measured["accuracy"]


def test_labels_without_a_second_image_are_refused_or_noted(place):
  x = np.eye(4, dtype=np.float32)
  names = (("a",), ("b",), ("c",), ("d",))
  images = Labelled(x, np.arange(4), np.arange(4), names, 0, 0, None)
  with pytest.raises(UserError, match="no label has two images"):
    probing.learn(images, "data", "model", {})


def test_another_models_classifier_is_refused(place, taught, tmp_path):
  model = big_siglip.load(str(place / "model"))
  image = jax.tree.map(lambda x: x + 1e-3, model.params["image"])
  data = model.config.data.to_dict()
  other = tmp_path / "other"
  params = {**model.params, "image": image}
  model_cases.save_model(other, params, model.config.model, data)
  with pytest.raises(UserError, match="of another image tower"):
    big_siglip.load(str(other)).classifier(str(taught[0]))
  resized = tmp_path / "resized"
  data["resize"] = "bicubic"
  model_cases.save_model(resized, model.params, model.config.model, data)
  with pytest.raises(UserError, match="images of other preprocessing"):
    big_siglip.load(str(resized)).classifier(str(taught[0]))
  broken = tmp_path / "broken"
  shutil.copytree(taught[0], broken)
  (broken / classifier.WEIGHTS).write_bytes(b"PK")
  with pytest.raises(UserError, match="holds a damaged classifier"):
    model.classifier(str(broken))


def test_an_onnx_classifier_gives_our_probabilities(place, taught, tmp_path):
  onnxruntime = pytest.importorskip("onnxruntime")
  call(
    "export_weights",
    f"--checkpoint={place}/model",
    "--format=onnx",
    f"--classifier={taught[0]}",
    f"--output={tmp_path}/onnx",
  )
  labels = json.loads((tmp_path / "onnx" / "classifier.json").read_text())
  assert labels == {"labels": ["blue", "green", "red"]}
  model = big_siglip.load(str(place / "model"))
  files = files_of(place)[::7]
  pixels = np.stack([model.prepare_image(file) for file in files])
  pixels = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
  session = onnxruntime.InferenceSession(tmp_path / "onnx" / "classifier.onnx")
  embeds, found = session.run(
    ["image_embeds", "probabilities"], {"pixel_values": pixels}
  )
  ours = model.classifier(str(taught[0]))
  np.testing.assert_allclose(embeds, model.embed_images(files), atol=1e-6)
  # What differs in an embedding, the matrix makes larger.
  head = classifier.softmax(ours.head.logits(embeds))
  np.testing.assert_allclose(found, head, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(found, ours.probabilities(files), rtol=1e-3)


def test_exports_have_the_calibrated_scale_and_bias(kept, tmp_path):
  folder, said = kept
  for name, flags in (("kept", []), ("none", ["--calibration=none"])):
    output = tmp_path / f"{name}.npz"
    call(
      "export_weights",
      f"--checkpoint={folder}",
      "--format=big_vision",
      f"--output={output}",
      *flags,
    )
    model = big_siglip.load(str(output))
    bare = big_siglip.load(str(folder), calibration="none")
    expected = [bare.logit_scale, bare.logit_bias]
    if not flags:
      expected = [said["scale"], said["bias"]]
    found = [model.logit_scale, model.logit_bias]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_tags_of_a_threshold(place, kept, tmp_path):
  flags = [
    f"--checkpoint={kept[0]}",
    f"--labels={','.join(COLOURS)},a zebra",
    f"--template={TEMPLATE}",
    f"{place}/photos",
  ]
  output, _ = call("classify", *flags, "--json", "--top=4")
  every = [json.loads(line) for line in output.splitlines()]
  file = tmp_path / "tags.csv"
  output, _ = call("classify", *flags, "--threshold=0.4", f"--csv={file}")
  assert output == f"{file}: 30 images\n"
  with file.open(newline="") as stream:
    rows = list(csv.DictReader(stream))
  some = 0
  for row, known in zip(rows, every, strict=True):
    assert row["image"] == known["image"]
    likely = {
      name: scores["probability"]
      for name, scores in known["scores"].items()
      if scores["probability"] >= 0.4
    }
    tags = row["tags"].split("; ") if row["tags"] else []
    assert tags == sorted(likely, key=lambda name: -likely[name])
    found = [float(p) for p in row["probabilities"].split("; ") if p]
    np.testing.assert_allclose(found, [likely[t] for t in tags], rtol=1e-4)
    some += len(tags)
  assert 0 < some < 120
  output, _ = call("classify", *flags, "--threshold=1")
  assert output.count("none of 4 labels at 100.00% or above; the lik") == 30


@pytest.mark.parametrize(
  ("command", "flags", "said"),
  [
    ("classify", ["--labels=a", "--threshold=1.5"], "must lie in [0, 1]"),
    ("classify", ["--labels=a", "--csv=setup.cfg"], "exists already"),
    ("classify", ["--labels=a", "--csv=no/x.csv"], "there is no folder"),
    ("classify", ["--labels=a", "--json", "--csv=x.csv"], "give one of them"),
    ("classify", ["--labels=a", "--classifier=b"], "has its own labels"),
    ("classify", ["--labels=a", "--calibration=x"], "must be kept, none or"),
    ("classify", ["--classifier=docs"], "docs: holds no classifier"),
    (
      "classify",
      ["--labels=a;b,c", "--threshold=0.5", "--format=csv"],
      "'a;b' holds ';', which stands between the tags",
    ),
    ("calibrate", ["--images=PHOTOS/nowhere"], "nowhere"),
    ("calibrate", ["--images=PHOTOS/red"], "red"),
    ("calibrate", ["--data=docs"], "--images=docs says where it lies"),
    ("calibrate", [], "--images=FOLDER, or another data set"),
    ("calibrate", ["--images=PHOTOS", "--prior=1"], "must lie between 0 and 1"),
    ("export_weights", ["--output=x", "--classifier=y"], "--format=onnx, not"),
    ("probe", ["--images=PHOTOS"], "--output=OUTPUT must be given"),
    ("probe", ["--images=PHOTOS", "--output=docs"], "exists already"),
    ("probe", ["--images=PHOTOS/red", "--output=x"], "red"),
    ("probe", ["--images=PHOTOS", "--split=x", "--output=x"], "--split='x'"),
  ],
)
def test_a_mistake_is_one_line(place, command, flags, said):
  flags = [flag.replace("PHOTOS", f"{place}/photos") for flag in flags]
  if command == "classify":
    flags.append(files_of(place)[0])
  line = programs.said_in_one_line(
    f"tools/{command}.py", f"--checkpoint={place}/model", *flags
  )
  assert said in line
  assert "config." not in line
