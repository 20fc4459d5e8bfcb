"""Parquet and tar as people write them: where images and labels hide."""

import base64
import io
import itertools
import json
import tarfile

import numpy as np
from PIL import Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from big_siglip.data import image_files, images
from big_siglip.data.sources import open_source, Options
from big_siglip.errors import BadExample, UserError


def encoded(shade, form="png"):
  file = io.BytesIO()
  Image.new("RGB", (8, 8), (shade, 10, 10)).save(file, form)
  return file.getvalue()


DATA = tuple(encoded(i) for i in range(3))
TEXTS = ("one", "two", "three")


def parquet(folder, name="data.parquet", **columns):
  folder.mkdir(exist_ok=True)
  pq.write_table(pa.table(columns), folder / name)
  return str(folder)


def tar(folder, files, name="0.tar"):
  """Writes (name, bytes or text) pairs in this order."""
  folder.mkdir(exist_ok=True)
  with tarfile.open(folder / name, "w") as archive:
    for member, content in files:
      data = content.encode() if isinstance(content, str) else content
      info = tarfile.TarInfo(member)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return str(folder)


def refused(name, path, split="all", **options):
  with pytest.raises(UserError) as e:
    open_source(name, split, path, Options(**options))
  assert "\n" not in str(e.value)
  return str(e.value)


def _base64(data):
  return base64.b64encode(data).decode()


PIXELS = [np.full((2, 2, 3), i, np.uint8) for i in range(3)]


@pytest.mark.parametrize(
  "column",
  [
    [{"bytes": data, "path": None} for data in DATA],
    [{"bytes": None, "path": f"{i}.png"} for i in range(3)],
    [{"bytes": None, "path": f"/home/me/pics/{i}.png"} for i in range(3)],
    [f"{i}.png" for i in range(3)],
    [f"pics\\{i}.png" for i in range(3)],
    [f"C:\\Users\\me\\pics\\{i}.png" for i in range(3)],
    [_base64(data) for data in DATA],
    ["data:image/png;base64," + _base64(data) for data in DATA],
    [base64.urlsafe_b64encode(data).decode() for data in DATA],
    [[data] for data in DATA],
    [[{"bytes": data, "path": None}] for data in DATA],
    [[{"bytes": None, "path": f"{i}.png"}] for i in range(3)],
    pa.array([list(data) for data in DATA], pa.list_(pa.uint8())),
  ],
)
def test_parquet_holds_images_in_many_ways(tmp_path, column):
  for number, data in enumerate(DATA):
    for folder in (tmp_path, tmp_path / "pics"):
      folder.mkdir(exist_ok=True)
      (folder / f"{number}.png").write_bytes(data)
  path = parquet(tmp_path, image=column, text=TEXTS)
  source = open_source("parquet", "all", path)
  assert [e.image for e in source] == list(DATA)
  assert [e.texts for e in source] == [(text,) for text in TEXTS]


def test_a_column_of_images_may_be_called_anything(tmp_path):
  column = [{"bytes": data, "path": None} for data in DATA]
  path = parquet(tmp_path, photo=column, text=TEXTS)
  assert open_source("parquet", "all", path)[1].image == DATA[1]


def test_pixels_in_lists_are_an_image(tmp_path):
  path = parquet(tmp_path, image=[p.tolist() for p in PIXELS], text=TEXTS)
  for example, pixels in zip(
    open_source("parquet", "all", path), PIXELS, strict=True
  ):
    np.testing.assert_array_equal(images.decode(example.image), pixels)


def test_images_that_are_not_there_are_named(tmp_path):
  column = [{"bytes": None, "path": "/home/me/0.png"}, None, {"bytes": DATA[2]}]
  path = parquet(tmp_path, image=column, text=TEXTS)
  source = open_source("parquet", "all", path)
  with pytest.raises(BadExample, match="'/home/me/0.png' is a path, and no"):
    source[0]
  with pytest.raises(BadExample, match="holds no image"):
    source[1]
  assert source[2].image == DATA[2]
  path = parquet(tmp_path / "two", image=[[DATA[0], DATA[1]]], text=["x"])
  with pytest.raises(BadExample, match="a list of 2, must be one image"):
    open_source("parquet", "all", path)[0]


def test_what_has_no_images_lists_its_columns(tmp_path):
  urls = [f"https://example.org/{i}.jpg" for i in range(3)]
  path = parquet(tmp_path, URL=urls, TEXT=TEXTS, WIDTH=[1, 2, 3])
  said = refused("parquet", path)
  assert "none has its type; there are: URL, TEXT, WIDTH" in said
  assert "URL holds URLs, which are not fetched here: img2dataset" in said
  path = parquet(tmp_path / "b", image=DATA, width=[1, 2, 3])
  assert "text_keys=None" in refused("parquet", path)
  assert "there are: image, width" in refused("parquet", path)
  path = tar(tmp_path / "tar", [("0.xyz", b"x"), ("0.md", b"y")])
  assert "none has its type; there are: xyz, md" in refused("tar", path)


def test_several_fields_of_captions_are_read_together(tmp_path):
  path = parquet(tmp_path / "a", image=DATA, caption_0=TEXTS, caption_1=TEXTS)
  assert open_source("parquet", "all", path)[0].texts == ("one", "one")
  texts = json.dumps({"caption1": "one", "caption2": "two"})
  files = [("0.png", DATA[0]), ("0.json", texts)]
  source = open_source("tar", "all", tar(tmp_path / "tar", files))
  assert source[0].texts == ("one", "two")


def test_labels_may_be_words(tmp_path):
  words = ["red", "blue", "red"]
  path = parquet(tmp_path / "a", image=DATA, text=TEXTS, kind=words)
  source = open_source("parquet", "all", path, Options(label_key="kind"))
  assert source.class_names == ("blue", "red")
  assert [e.label for e in source] == [1, 0, 1]
  path = parquet(tmp_path / "b", image=DATA, label=words)
  source = open_source("parquet", "all", path)
  assert [(e.label, *e.texts) for e in source] == [
    (1, "red"),
    (0, "blue"),
    (1, "red"),
  ]
  samples = zip(DATA, TEXTS, ("red\n", "blue", "red"), strict=True)
  files = []
  for number, content in enumerate(samples):
    ends = zip(("png", "txt", "cls"), content, strict=True)
    files += [(f"{number}.{end}", data) for end, data in ends]
  source = open_source("tar", "all", tar(tmp_path / "tar", files))
  assert source.class_names == ("blue", "red")
  assert [(e.label, *e.texts) for e in source] == [
    (1, "one"),
    (0, "two"),
    (1, "three"),
  ]


def test_a_label_of_minus_one_is_none(tmp_path):
  path = parquet(tmp_path, image=DATA, text=TEXTS, label=[0, -1, 2])
  source = open_source("parquet", "all", path, Options(label_key="label"))
  assert [e.label for e in source] == [0, None, 2]
  files = [("0.png", DATA[0]), ("0.txt", "x"), ("0.cls", "-1")]
  source = open_source("tar", "all", tar(tmp_path / "tar", files))
  assert source[0].label is None and source[0].texts == ("x",)


@pytest.mark.parametrize(
  "turns",
  [
    [
      {"from": "human", "value": "<image>\nWhat is it?"},
      {"from": "gpt", "value": "A disc."},
      {"from": "human", "value": "Which colour?"},
      {"from": "gpt", "value": "Red."},
    ],
    [
      {"role": "system", "content": "Be short."},
      {"role": "user", "content": "What is it?"},
      {"role": "assistant", "content": "A disc."},
      {"role": "assistant", "content": "Red."},
    ],
    {
      "from": ["human", "gpt", "Human", "gpt"],
      "value": ["What is it?", "A disc.", "Which colour?", "Red."],
    },
  ],
)
def test_answers_of_conversations_are_captions(tmp_path, turns):
  fields = turns[0] if isinstance(turns, list) else turns
  key = f"turns/{[*fields][1]}"
  options = {"text_keys": (key,)}
  path = parquet(tmp_path / "a", image=DATA[:1], turns=[turns])
  (example,) = open_source("parquet", "all", path, Options(**options))
  assert example.texts == ("A disc.", "Red.")
  assert "several could be it: turns/" in refused("parquet", path)
  files = [("0.png", DATA[0]), ("0.json", json.dumps({"turns": turns}))]
  path = tar(tmp_path / "tar", files)
  (example,) = open_source("tar", "all", path, Options(**options))
  assert example.texts == ("A disc.", "Red.")
  (tmp_path / "0.png").write_bytes(DATA[0])
  rows = [{"image": "0.png", "turns": turns}]
  (tmp_path / "train.json").write_text(json.dumps(rows))
  place = str(tmp_path / "train.json")
  (example,) = open_source("folder", "all", place, Options(**options))
  assert example.texts == ("A disc.", "Red.")


@pytest.mark.parametrize(
  ("names", "splits"),
  [
    (("train-00000-of-00001", "test-00000-of-00001"), ("train", "test")),
    (("train-0", "validation-0"), ("train", "val")),
    (("photos_training.0", "photos_dev.0"), ("train", "val")),
  ],
)
def test_files_of_two_splits_are_not_one_set(tmp_path, names, splits):
  for name, text in zip(names, ("one", "two"), strict=True):
    parquet(tmp_path, f"{name}.parquet", image=DATA[:1], text=[text])
    files = [("0.png", DATA[0]), ("0.txt", text)]
    tar(tmp_path, files, f"{name}.tar")
  for kind in ("parquet", "tar"):
    said = refused(kind, str(tmp_path))
    assert f"must be one of {', '.join(sorted(splits))}" in said
    for split, text in zip(splits, ("one", "two"), strict=True):
      (example,) = open_source(kind, split, str(tmp_path))
      assert example.texts == (text,)
    both = "::".join(f"{tmp_path}/{name}.{kind}" for name in names)
    assert len(open_source(kind, "all", both)) == 2
    (example,) = open_source(kind, "all", f"{tmp_path}/{names[0]}.{kind}")
    assert example.texts == ("one",)
    assert "must be one of all, train" in refused(
      kind, f"{tmp_path}/{names[0]}.{kind}", "extra"
    )


@pytest.mark.parametrize(
  "form", ["png", "webp", "avif", "jp2", "ppm", "bmp", "gif", "tiff", "mpo"]
)
def test_every_kind_of_image_is_one_in_a_shard(tmp_path, form):
  kind = {"jp2": "jpeg2000", "mpo": "mpo"}.get(form, form)
  data = encoded(200, kind)
  files = [("0.jpg", DATA[0]), ("0.txt", "x"), (f"1.{form}", data)]
  files.append(("1.txt", "y"))
  source = open_source("tar", "all", tar(tmp_path, files))
  assert [e.image for e in source] == [DATA[0], data]
  assert images.decode(source[1].image).shape == (8, 8, 3)
  assert image_files.is_image(f"A.{form.upper()}")
  source = open_source("tar", "all", tar(tmp_path / "alone", files[2:]))
  assert source[0].texts == ("y",)


def test_what_cannot_be_decoded_is_named():
  for data, said in (
    (b"\0\0\0\x18ftypheic" + bytes(20), "is HEIC, which needs pillow-heif"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is SVG or XML"),
    (b"<?xml version='1.0'?><svg/>", "is SVG or XML"),
    (b"nothing", "is no image of a known format"),
  ):
    with pytest.raises(BadExample, match=said):
      images.decode(data)


def test_dots_in_names_are_told(tmp_path):
  path = tar(
    tmp_path / "a",
    [("page_2.0.jpg", DATA[0]), ("page_2.0.txt", "x"), ("page_2.1.jpg", b"")],
  )
  said = refused("tar", path)
  assert "several could be it: 0.jpg, 1.jpg" in said
  assert "a name is cut at its first dot" in said
  files = [("s0.input.jpg", DATA[0]), ("s0.outputs.txt", "x")]
  (example,) = open_source("tar", "all", tar(tmp_path / "b", files))
  assert example.image == DATA[0] and example.texts == ("x",)


def test_unsorted_shards_are_told(tmp_path):
  files = [(f"{i}.png", data) for i, data in enumerate(DATA)]
  files += [(f"{i}.txt", text) for i, text in enumerate(TEXTS)]
  path = tar(tmp_path / "a", files)
  said = refused("tar", path)
  assert "the files of 3 samples, such as 0, do not follow each other" in said
  # One sample of many costs itself.
  files = sorted(files)[:-1] + [("4.png", DATA[0]), ("2.txt", "late")]
  source = open_source("tar", "all", tar(tmp_path / "b", files))
  assert source[0].texts == ("one",) and source[1].texts == ("two",)
  assert "of 1 samples, such as 2, do not" in source.faults[0].reason
  # A second sample of the same key is one.
  whole = [("0.png", DATA[0]), ("0.txt", "x"), ("1.png", DATA[1])]
  whole += [("1.txt", "y"), ("0.png", DATA[2]), ("0.txt", "z")]
  source = open_source("tar", "all", tar(tmp_path / "c", whole))
  assert [e.texts for e in source] == [("x",), ("y",), ("z",)]


def block(name, size, kind=b"0", more=b""):
  """Returns a GNU header with the field of its size as it is given."""
  info = tarfile.TarInfo(name)
  info.type = kind
  header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
  header[124:136] = size
  header[386 : 386 + len(more)] = more
  header[148:156] = b" " * 8
  header[148:156] = b"%06o\0 " % sum(header)
  return bytes(header)


def octal(number):
  return b"%011o\0" % number


def padded(data):
  return data + bytes(-len(data) % 512)


def base_256(number):
  sign = b"\xff" if number < 0 else b"\x80"
  return sign + (number % 2**88).to_bytes(11, "big")


def pax(fields):
  header = block("PaxHeader", octal(len(fields)), b"x") + padded(fields)
  return header + block("1.png", octal(0))


SIZES = [base_256(n) for n in (2**62, 2**63 - 1, 2**80, -1, -5000, 2**40)]
SIZES.append(b"-0000005000\0")
KINDS = (b"0", b"L", b"K", b"x", b"X", b"g", b"S", b"D", b"V", b"7")
HOSTILE = [
  *(
    block("1.png", size, kind) for size, kind in itertools.product(SIZES, KINDS)
  ),
  pax(b"9" * 5000 + b" path=x\n"),
  pax(b"5016 size=" + b"9" * 5005 + b"\n"),
  pax(b"16 size=-500000\n"),
  pax(b"99 path=beyond\n"),
  pax(b"6 a=b\n" * (8 * 2**20 // 6)),
]
WHOLE = b"".join(
  padded(block(name, octal(len(data))) + padded(data))
  for name, data in (("0.png", DATA[0]), ("0.txt", b"one"))
)


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_headers_cost_their_shard(tmp_path, monkeypatch, number):
  monkeypatch.setenv("BIG_SIGLIP_DATA", str(tmp_path / "cache"))
  rest = WHOLE.replace(b"0.png", b"2.png").replace(b"0.txt", b"2.txt")
  data = WHOLE + HOSTILE[number] + rest + bytes(1024)
  (tmp_path / "0.tar").write_bytes(data)
  asked = []
  source = open_source("tar", "all", str(tmp_path))
  (fault,) = source.faults
  assert fault.kind == "record" and fault.name.endswith("0.tar")
  assert source[0].texts == ("one",)
  for index in range(1, len(source)):
    with pytest.raises(BadExample):
      asked.append(source[index])
  options = Options(captions="all")
  assert len(open_source("tar", "all", str(tmp_path), options)) == 1
  assert not asked


def test_sparse_files_are_whole(tmp_path):
  # As GNU's tar -S writes them, here of two parts and a hole between.
  hole = 4096
  image = DATA[0] + bytes(hole) + b"end"
  parts = [(0, len(DATA[0])), (len(image) - 3, 3)]
  table = b"".join(octal(a) + octal(b) for a, b in parts)
  table = table.ljust(4 * 24, b"\0") + b"\0" + octal(len(image))
  stored = padded(DATA[0] + b"end")
  size = octal(len(DATA[0]) + 3)
  old = block("0.png", size, b"S", table) + stored
  pairs = "".join(f"{a},{b}," for a, b in parts).rstrip(",")
  fields = b""
  for key, value in (
    ("GNU.sparse.major", "0"),
    ("GNU.sparse.minor", "1"),
    ("GNU.sparse.name", "1.png"),
    ("GNU.sparse.size", str(len(image))),
    ("GNU.sparse.numblocks", "2"),
    ("GNU.sparse.map", pairs),
  ):
    line = f" {key}={value}\n".encode()
    length = len(line) + 2
    fields += str(length).encode() + line
  new = block("PaxHeader", octal(len(fields)), b"x") + padded(fields)
  new += block("GNUSparseFile.0/1.png", size) + stored
  texts = [block(f"{i}.txt", octal(3)) + padded(b"abc") for i in range(2)]
  data = old + texts[0] + new + texts[1] + bytes(1024)
  (tmp_path / "0.tar").write_bytes(data)
  source = open_source("tar", "all", str(tmp_path))
  assert not source.faults
  assert [e.image for e in source] == [image, image]
  assert [e.texts for e in source] == [("abc",), ("abc",)]
