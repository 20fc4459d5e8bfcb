"""Karpathy's splits and XM3600, in the form that they are published in."""

import json

import pytest

from big_siglip.errors import UserError
from big_siglip.evaluators.captions import open_captions


def karpathy(folder, images):
  """Writes dataset_coco.json and the images' files."""
  entries = []
  for name, split, captions in images:
    file = folder / "val2014" / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(name.encode())
    entries.append(
      {
        "filepath": "val2014",
        "sentids": list(range(len(captions))),
        "filename": name,
        "imgid": 0,
        "split": split,
        "sentences": [
          {"tokens": text.split(), "raw": text, "imgid": 0, "sentid": 0}
          for text in captions
        ],
        "cocoid": 1,
      }
    )
  file = folder / "dataset_coco.json"
  file.write_text(json.dumps({"images": entries, "dataset": "coco"}))
  return file


SIX = [f"caption {number}" for number in range(6)]
IMAGES = [("a.jpg", "test", SIX), ("b.jpg", "train", ["x"])]
IMAGES += [("c.jpg", "test", ["one", "two"])]


def open_test(file, **options):
  options = {"split": "test", **options}
  return open_captions(str(file), str(file.parent), **options)


def test_karpathys_split(tmp_path):
  source = open_test(karpathy(tmp_path, IMAGES), max_captions=5)
  assert len(source) == 2
  assert source.texts == {"": (tuple(SIX[:5]), ("one", "two"))}
  example = source[1]
  assert example.image == b"c.jpg"
  assert example.name == "val2014/c.jpg"
  assert example.texts == ("one", "two")
  assert len(list(source)) == 2


def test_images_may_lie_without_their_sub_folder(tmp_path):
  file = karpathy(tmp_path, IMAGES)
  for image in (tmp_path / "val2014").iterdir():
    image.rename(tmp_path / image.name)
  assert open_test(file)[0].name == "a.jpg"


def xm3600(folder, languages=("en", "fr")):
  lines = []
  (folder / "images").mkdir()
  for number in range(3):
    (folder / "images" / f"k{number}.jpg").write_bytes(b"image")
    line = {"image/key": f"k{number}", "image/locale": "en"}
    for name in languages:
      captions = [f"{name} {number} {i}" for i in range(2)]
      line[name] = {"caption": captions, "caption/tokenized": captions}
    lines.append(json.dumps(line))
  file = folder / "captions.jsonl"
  file.write_text("\n".join(lines) + "\n")
  return file


def test_xm3600_by_language(tmp_path):
  file = xm3600(tmp_path)
  source = open_test(file)
  assert list(source.texts) == ["en", "fr"]
  assert source.texts["fr"][2] == ("fr 2 0", "fr 2 1")
  assert source[0].name == "images/k0.jpg"
  assert source[0].texts == ("en 0 0", "en 0 1", "fr 0 0", "fr 0 1")
  assert list(open_test(file, language="fr").texts) == ["fr"]
  with pytest.raises(UserError, match="language='xx': line 1 has en, fr"):
    open_test(file, language="xx")


def test_bad_files_are_named(tmp_path):
  file = karpathy(tmp_path, IMAGES)
  for change, message in (
    ({"split": "dev"}, "split='dev': must be one of test, train"),
    ({"folder": None}, "path must be the folder of the images"),
    ({"file": "no.json"}, "No such file"),
    ({"file": "list.json"}, "not of the expected form"),
    ({"file": "text.json"}, "is not JSON"),
    ({"file": "no.txt"}, "no such file"),
  ):
    (tmp_path / "list.json").write_text("[3]")
    (tmp_path / "text.json").write_text("{")
    chosen = {"file": file.name, "folder": str(tmp_path), "split": "test"}
    chosen |= change
    name, folder = tmp_path / chosen.pop("file"), chosen.pop("folder")
    with pytest.raises(UserError, match=message) as error:
      open_captions(str(name), folder, **chosen)
    assert f"captions_file={str(name)!r}" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
  (tmp_path / "val2014" / "c.jpg").unlink()
  with pytest.raises(
    UserError, match="names 1 images that are not in .*, the first 'val2014/c"
  ):
    open_test(file)


COCO = {
  "images": [{"id": i, "file_name": f"{i}.jpg"} for i in (139, 285)],
  "annotations": [
    {"image_id": image, "id": i, "caption": f"text {i}, and more"}
    for i, image in enumerate((139, 139, 285))
  ],
}
LIST = "image,caption\n" + "".join(
  f"{note['image_id']}.jpg,{note['caption']}\n" for note in COCO["annotations"]
)


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("captions_val2017.json", json.dumps(COCO)),
    ("flickr30k_test_karpathy.txt", LIST),
    ("list.csv", LIST.replace(", and", " and")),
    (
      "list.jsonl",
      "".join(
        json.dumps({"image": f"{n['image_id']}.jpg", "text": n["caption"]})
        + "\n"
        for n in COCO["annotations"]
      ),
    ),
  ],
)
def test_other_files_of_captions_are_read(tmp_path, name, content):
  (tmp_path / "val2017").mkdir()
  for image in COCO["images"]:
    (tmp_path / "val2017" / image["file_name"]).write_bytes(b"image")
  (tmp_path / name).write_text(content)
  source = open_captions(
    str(tmp_path / name), str(tmp_path), split="test", max_captions=5
  )
  texts = [text for texts in source.texts[""] for text in texts]
  texts = [text.replace(", and", " and") for text in texts]
  assert texts == [f"text {i} and more" for i in range(3)]
  assert [source[i].name for i in range(2)] == [
    "val2017/139.jpg",
    "val2017/285.jpg",
  ]
  (tmp_path / "val2017" / "285.jpg").unlink()
  with pytest.raises(UserError, match="names 1 images that are not in"):
    open_captions(str(tmp_path / name), str(tmp_path), split="all")
