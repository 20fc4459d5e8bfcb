"""tools/classify.py, on a model and images that this test makes."""

import json
import os
import tarfile

import jax
import model_cases
import numpy as np
from PIL import Image
import programs
import pytest

import big_siglip
from big_siglip.data.text import ByteTokenizer
from big_siglip.models import SigLIP

LABELS = ["a cat", "a dog", "a boat"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with a model, and photos of which one is none."""
  folder = tmp_path_factory.mktemp("classify")
  config = model_cases.model_config({}, dict(vocab_size=259))
  params = jax.device_put(model_cases.random_params(SigLIP(config)))
  data = {"tokenizer": "bytes", "lowercase": True, "clean": "none", "pad_id": 1}
  model_cases.save_model(
    folder / "model", params, config, {**data, "resize": "bilinear"}
  )
  (folder / "photos").mkdir()
  rng = np.random.default_rng(0)
  for name in ("one.png", "two.jpg"):
    pixels = rng.integers(0, 256, (24, 40, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photos" / name)
  (folder / "photos" / "broken.jpg").write_text("no image")
  return folder


def test_scores_are_those_of_the_model_and_a_bad_image_is_named(place):
  status, output, message = programs.start(
    "tools/classify.py",
    f"--checkpoint={place}/model",
    f"--labels={','.join(LABELS)}",
    "--template=a photo of {}",
    "--json",
    f"{place}/photos",
  )
  assert status == 0, message
  lines = [json.loads(line) for line in output.splitlines()]
  files = [place / "photos" / name for name in ("one.png", "two.jpg")]
  assert [line["image"] for line in lines] == list(map(str, files))
  assert "skipped: " in message and "broken.jpg" in message
  assert "1 of 3 images skipped" in message
  model = big_siglip.load(str(place / "model"))
  texts = [f"a photo of {label}" for label in LABELS]
  logits = model.logits(files, texts)
  for line, row in zip(lines, logits, strict=True):
    got = [line["scores"][label] for label in LABELS]
    np.testing.assert_allclose(
      [x["probability"] for x in got], 1 / (1 + np.exp(-row)), rtol=1e-3
    )
    softmax = np.exp(row - row.max())
    np.testing.assert_allclose(
      [x["softmax"] for x in got], softmax / softmax.sum(), rtol=1e-3
    )


def test_a_table_for_people(place):
  (place / "labels.txt").write_text("\n".join(LABELS))
  status, output, _ = programs.call(
    "tools/classify.py",
    f"--checkpoint={place}/model",
    f"--labels={place}/labels.txt",
    "--top=2",
    f"{place}/photos/one.png",
  )
  assert status == 0
  lines = output.splitlines()
  assert lines[0].endswith("one.png")
  assert lines[1].split() == ["sigmoid", "softmax"]
  assert len(lines) == 4


def test_images_that_cannot_be_read_are_named_and_100_000_labels_taken(
  place, tmp_path
):
  (tmp_path / "labels.txt").write_text(
    "\n".join(f"label {i}" for i in range(100_000))
  )
  (tmp_path / "cut.png").write_bytes(
    (place / "photos" / "one.png").read_bytes()[:200]
  )
  (tmp_path / "folder.png").mkdir()
  os.mkfifo(tmp_path / "pipe.png")  # Opened, it would wait for ever.
  name = os.fsdecode(b"\xff.png")  # No Unicode.
  (tmp_path / name).write_bytes((place / "photos" / "one.png").read_bytes())
  flags = [f"--checkpoint={place}/model", f"--labels={tmp_path}/labels.txt"]
  status, output, message = programs.call(
    "tools/classify.py", *flags, "--top=3", str(tmp_path)
  )
  assert status == 0, message
  assert len(output.splitlines()) == 5
  assert "cut.png: " in message and "1 of 2 images skipped" in message
  status, output, message = programs.call(
    "tools/classify.py", *flags[:1], "--labels=a,b", f"{tmp_path}/cut.png"
  )
  assert (status, output) == (1, "")
  assert message.splitlines()[-1] == "1 of 1 images skipped"


def scores_of(*arguments):
  """Returns {image: {label: its scores}}, and what was noted."""
  status, output, message = programs.call(
    "tools/classify.py", "--json", "--top=99", *arguments
  )
  assert status == 0, message
  lines = [json.loads(line) for line in output.splitlines()]
  return {line["image"]: line["scores"] for line in lines}, message


def test_labels_of_a_table_or_a_list(place, tmp_path):
  rows = "".join(f"{i},{label}\n" for i, label in enumerate(LABELS))
  (tmp_path / "a.csv").write_text(f"id,label\n{rows}")
  flags = [f"--checkpoint={place}/model", f"{place}/photos/one.png"]
  found, _ = scores_of(f"--labels={tmp_path}/a.csv", *flags)
  assert list(found.values())[0].keys() == set(LABELS)
  same, _ = scores_of(f"--labels={json.dumps(LABELS)}", *flags)
  assert found == same


def test_several_names_of_a_label_are_averaged_and_equal_ones_are_one(
  place, tmp_path
):
  names = {"a": ["a cat", "a tom"], "b": "a dog", "c": "a dog"}
  (tmp_path / "names.json").write_text(json.dumps(names))
  found, said = scores_of(
    f"--checkpoint={place}/model",
    f"--labels={tmp_path}/names.json",
    f"{place}/photos/one.png",
  )
  assert "1 labels have the names of others, and count once: a dog" in said
  model = big_siglip.load(str(place / "model"))
  cats = model.embed_texts(["a cat", "a tom"]).mean(0)
  image = model.embed_images([place / "photos" / "one.png"])[0]
  logit = model.logit_scale * (image @ cats / np.linalg.norm(cats))
  (scores,) = found.values()
  assert list(sorted(scores)) == ["a cat", "a dog"]
  expected = 1 / (1 + np.exp(-(logit + model.logit_bias)))
  assert scores["a cat"]["probability"] == pytest.approx(expected, rel=1e-4)


def test_images_of_shards_and_what_lies_beside_them(place, tmp_path):
  photo = place / "photos" / "one.png"
  # A table that lies beside images is no image, and no list of them.
  (tmp_path / "list.csv").write_text(f"file_name,text\n{photo},x\n")
  with tarfile.open(tmp_path / "0.tar", "w") as shard:
    shard.add(photo, "one.png")
  files = [str(photo), f"{tmp_path}/list.csv", f"{tmp_path}/0.tar"]
  flags = [f"--checkpoint={place}/model", "--labels=a cat,a dog"]
  found, said = scores_of(*flags, *files)
  assert list(found) == [str(photo), f"{tmp_path}/0.tar#one"]
  first, second = found.values()
  assert first == second
  assert "list.csv: is no image" in said


def make_model(folder, place, **changes):
  """Writes the model with some parameters changed; returns its folder."""
  model = big_siglip.load(str(place / "model"))
  params = {**model.params, **changes}
  data = model.config.data.to_dict()
  model_cases.save_model(folder, params, model.config.model, data)
  return folder


def test_a_softmax_model_shows_no_sigmoid_and_says_why(place, tmp_path):
  path = make_model(tmp_path / "m", place, logit_bias=np.float32(0))
  flags = [f"--checkpoint={path}", "--labels=a cat,a dog"]
  found, said = scores_of(*flags, f"{place}/photos/one.png")
  (scores,) = found.values()
  assert scores["a cat"]["probability"] is None
  assert 0 < scores["a cat"]["softmax"] < 1
  assert "trained without a sigmoid" in said and "bias" in said
  # So does a run's config.json, whatever the bias is.
  path = make_model(tmp_path / "run", place)
  config = json.loads((path / "config.json").read_text())
  config["loss"] = {"name": "ring_softmax"}
  (path / "config.json").write_text(json.dumps(config))
  assert not big_siglip.load(str(path)).has_trained_bias
  assert big_siglip.load(str(place / "model")).has_trained_bias


def test_a_label_without_a_finite_embedding_is_named(place, tmp_path):
  text = big_siglip.load(str(place / "model")).params["text"]
  text = jax.tree.map(np.array, text)
  number = ByteTokenizer()(["z"], 2)[0, 0]
  text["token_embedding"]["embedding"][number] = 3e38  # Overflows.
  path = make_model(tmp_path / "m", place, text=text)
  said = programs.said_in_one_line(
    "tools/classify.py",
    f"--checkpoint={path}",
    "--labels=a cat,a zebra",
    f"{place}/photos/one.png",
  )
  assert "1 of 2 labels are not finite, such as that of 'a zebra'" in said


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--labels=a,b", "x.png"], "--checkpoint=MODEL must be given"),
    (["--checkpoint=m", "x.png"], "--labels=A,B or --labels=FILE"),
    (["--checkpoint=m", "--labels=a,,b", "x.png"], "holds an empty label"),
    (["--checkpoint=m", "--labels=a,b,a", "x.png"], "'a' stands there twice"),
    (["--checkpoint=m", "--labels=nowhere.txt", "x.png"], "no such file"),
    (["--checkpoint=m", "--labels=a", "--top=0"], "must be at least 1"),
    (["--checkpoint=m", "--labels=a", "--top=x"], "invalid literal for int"),
    (["--chekpoint=m"], "did you mean --checkpoint?"),
    (["--checkpoint=m", "--labels=docs/page-labels.png"], "must be UTF-8"),
    (["--checkpoint=m", "--labels=a"], "name at least one image"),
    (["--checkpoint=m", "--labels=a", "x.png"], "x.png: no such file"),
    (
      ["--checkpoint=m", "--labels=a", "--template=of"],
      "must have '{}' exactly once",
    ),
    (["--checkpoint=nowhere", "--labels=a", "setup.cfg"], "no such file"),
  ],
)
def test_a_mistake_is_one_line(flags, said):
  assert said in programs.said_in_one_line("tools/classify.py", *flags)
