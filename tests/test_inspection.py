"""What tools/inspect_data.py finds, draws and prints."""

import json

import format_cases
import numpy as np
from PIL import Image
import programs
import pytest
import runs

from big_siglip import build, training_data
from big_siglip.report import inspection


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Twelve photos, one of them truncated, with a caption each."""
  folder = tmp_path_factory.mktemp("photos")
  rng = np.random.default_rng(0)
  rows = ["image,caption"]
  for i in range(12):
    pixels = rng.integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.jpg")
    rows.append(f"{i}.jpg,caption {i} for $5")
  data = (folder / "3.jpg").read_bytes()
  (folder / "3.jpg").write_bytes(data[: len(data) // 2])
  (folder / "captions.csv").write_text("\n".join(rows))
  return folder


def _config(folder):
  return runs.config(
    data__name="folder",
    data__path=str(folder),
    data__split="all",
    model__text__length=24,
  )


def test_it_shows_what_training_sees(folder, tmp_path):
  config = _config(folder)
  source = training_data.train_source(config)
  found = inspection.inspect(source, build.views(config), config, 40)
  assert found.images_per_second > 0
  stages = ("read", "decode", "image", "text")
  assert tuple(found.milliseconds) == stages
  assert all(value > 0 for value in found.milliseconds.values())
  assert found.epochs == {"epochs": 60 * 16 / 12}
  assert found.skipped["image"] >= 4, "one in every twelve of 64"
  assert [fault.name for fault in found.faults] == ["3.jpg"]
  assert len(found.rows) == 16
  for name, number, image, text in found.rows:
    assert name == "" and image.shape == (16, 16, 3)
    assert text == f"caption {number} for $5"
  inspection.draw(found, tmp_path / "page.png", count=8)
  assert Image.open(tmp_path / "page.png").size[0] > 1_000


@pytest.mark.torch
def test_what_cannot_be_opened_or_drawn_is_told_in_short(tmp_path, recwarn):
  images = format_cases.photos(count=20)
  images = {n: (data, ["\u65e5\u672c"]) for n, (data, _) in images.items()}
  format_cases.write_tar(tmp_path / "tar", images)
  config = runs.config(
    data__name="tar",
    data__path=f"{tmp_path}/tar/{{00000..00002}}.tar",
    data__split="all",
    data__max_skipped=0.5,
  )
  source = training_data.train_source(config)
  found = inspection.inspect(source, build.views(config), config, 40)
  (fault,) = found.faults
  assert fault.name.endswith("00002.tar") and fault.kind == "missing"
  recwarn.clear()
  inspection.draw(found, tmp_path / "page.png")  # Its font has no such letter.
  assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_embeddings_are_drawn_too(tmp_path):
  vectors = np.random.default_rng(0).normal(size=(6, 32))
  rows = tuple(("", i, vector, "") for i, vector in enumerate(vectors))
  found = inspection.Inspection(1.0, {}, {}, {}, (), rows)
  inspection.draw(found, tmp_path / "page.png")
  page = np.asarray(Image.open(tmp_path / "page.png").convert("L"))
  middle = page[len(page) // 3 : len(page) // 2]  # Below the numbers.
  for column in np.array_split(middle, 6, axis=1):
    assert column.min() < 200


def test_the_tool_prints_and_draws(folder, tmp_path):
  page = tmp_path / "page.png"
  arguments = [
    f"--config={runs.CONFIG}",
    *runs.overrides(data__name="folder", data__path=folder, data__split="all"),
    f"--output={page}",
    "--count=16",
  ]
  status, output, said = programs.start(
    "tools/inspect_data.py", *arguments, "--json"
  )
  assert status == 0, said
  answer = json.loads(output)
  assert answer["examples"] == 12 and answer["page"] == str(page)
  assert answer["faults"][0]["name"] == "3.jpg"
  assert page.read_bytes().startswith(b"\x89PNG")
  arguments[-2:] = ["--output=/no/x.png"]
  said = programs.said_in_one_line("tools/inspect_data.py", *arguments)
  assert "--output=/no/x.png: not writable" in said


def test_it_shows_boxes_and_counts_bad_ones(tmp_path):
  """White rectangles, whose boxes are drawn around them; two are no boxes."""
  rng = np.random.default_rng(0)
  lines = []
  for i in range(12):
    top, left = rng.integers(4, 20, 2)
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[top : top + 15, left : left + 30] = 255
    Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    box = [int(left), int(top), 30, 15] if i else [5, 5, -3, 10]
    text = "" if i == 5 else f"white ${i}"
    row = {"image": f"{i}.png", "caption": "a box", "boxes": [box]}
    lines.append(json.dumps({**row, "box_texts": [text]}))
  (tmp_path / "captions.jsonl").write_text("\n".join(lines))
  config = _config(tmp_path)
  config.data.fields = ("boxes", "box_texts")
  config.data.boxes.format = "xywh"
  config.data.crop_min_area, config.data.flip = 0.5, True
  config.model.image.image_size = 64
  config.data.resize = "bilinear"
  source = training_data.train_source(config)
  found = inspection.inspect(source, build.views(config), config, 12)
  assert found.boxes.as_json() == {
    "images": 12,
    "with_boxes": 10,
    "boxes": 10,
    "bad": dict(found.boxes.bad),
  }
  assert found.boxes.bad == {"upside down": 1, "no text": 1}
  names = {name: why for name, why in found.boxes.told}
  assert set(names) == {"0.png", "5.png"}
  assert "box 1 of 1, [5, 5, -3, 10]: upside down" in names["0.png"]
  assert "10 on 10 of 12 images; cannot be used: " in found.boxes.lines()[0]
  checked = 0
  for (_, number, image, _), seen in zip(
    found.rows, found.boxes.seen, strict=True
  ):
    assert (seen is None) == (number in (0, 5))
    for (top, left, bottom, right), text in seen or ():
      rows, columns = np.nonzero(image[..., 0] > 127)
      corners = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
      edges = np.array([top, left, bottom, right]) * 64
      np.testing.assert_allclose(edges, corners, atol=1.5)
      assert text == f"white ${number}"
      checked += 1
  assert checked >= 12
  inspection.draw(found, tmp_path / "page.png")
