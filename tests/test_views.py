"""Views: a toy one from outside the package beside those of the program."""

import dataclasses
import io
import itertools
import json
import pickle

from absl import flags
import numpy as np
from PIL import Image
import pytest

from big_siglip.data import images, pipeline, sources
from big_siglip.data.batch import empty, Field, union
from big_siglip.data.text import make_tokenizer
from big_siglip.data.views import fill, Pixels, Tokens

COUNT = 12


@dataclasses.dataclass(frozen=True)
class ToyBoxes:
  """All that a user writes: boxes of images, in an order that is drawn."""

  most: int = 3
  name: str = "boxes"

  def fields(self, batch):
    return {self.name: Field((self.most, 4), "float32")}

  def __call__(self, examples, rngs, out):
    bad = {}
    for i, (row, example) in enumerate(
      zip(out[self.name], examples, strict=True)
    ):
      boxes = example.fields["boxes"]
      if boxes is None:
        bad[i] = images.BadImage("has no boxes")
        continue
      row[:] = 0
      order = rngs[i].permutation(len(boxes))[: self.most]
      row[: len(order)] = np.array(boxes, np.float32).reshape(-1, 4)[order]
    return bad


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """JPEG files with two captions each, and boxes but for one."""
  folder = tmp_path_factory.mktemp("photos")
  rng = np.random.default_rng(0)
  rows = []
  for number in range(COUNT):
    waves = rng.normal(size=(12, 16, 3)) * 40 + 128
    image = Image.fromarray(np.clip(waves, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.resize((640, 480)).save(buffer, "jpeg", quality=90)
    (folder / f"{number}.jpg").write_bytes(buffer.getvalue())
    boxes = [[number, i, 9, 9] for i in range(number % 4)]
    for text in ("one", "two"):
      row = {"image": f"{number}.jpg", "caption": text, "boxes": boxes}
      if number == 5:
        del row["boxes"]
      rows.append(json.dumps(row))
  (folder / "captions.jsonl").write_text("\n".join(rows))
  return str(folder)


def _batches(folder, views, count=6, **options):
  source = sources.open_source(
    "folder", "all", folder, sources.Options(fields=("boxes",))
  )
  options = dict(batch_size=COUNT, seed=3, num_threads=2) | options
  batches = pipeline.train_batches(source, views, **options)
  try:
    return list(itertools.islice(batches, count))
  finally:
    batches.close()


PLAIN = (
  Pixels(16, crop_min_area=0.3, flip=True),
  Tokens(make_tokenizer("bytes"), 8),
)


@pytest.mark.parametrize("decoder", ["pillow", "fast"])
def test_a_view_from_outside_changes_no_other(photos, decoder):
  """One dataclass, and one more element of the views."""
  alone = _batches(photos, PLAIN, decoder=decoder)
  beside = _batches(photos, (ToyBoxes(), *PLAIN), decoder=decoder)
  compared = 0
  for one, two in zip(alone, beside, strict=True):
    assert two["boxes"].shape == (COUNT, 3, 4)
    assert two["boxes"].dtype == np.float32
    assert 5 in one["index"] and 5 not in two["index"]  # It has no boxes.
    assert two["faults"].sum() == 1
    for i, index in enumerate(two["index"]):
      boxes = two["boxes"][i, : index % 4]
      assert (boxes[:, 0] == index).all()
      assert set(boxes[:, 1]) == set(range(index % 4))
      if index == one["index"][i]:
        compared += 1
        for name in ("image", "text", "image_index"):
          np.testing.assert_array_equal(one[name][i], two[name][i])
  assert compared == 6 * (COUNT - 1)
  orders = {tuple(b["boxes"][b["index"] == 11][0, :, 1]) for b in beside}
  assert len(orders) > 1, "its own draws"


def test_worker_processes_run_it_too(photos):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain hands them to its workers.
  views = (*PLAIN, ToyBoxes())
  assert pickle.loads(pickle.dumps(views))[2] == views[2]
  for one, two in zip(
    _batches(photos, views, 2),
    _batches(photos, views, 2, num_workers=1),
    strict=True,
  ):
    for name in one:
      np.testing.assert_array_equal(one[name], two[name])


def test_an_image_is_decoded_once_for_all_views(photos, monkeypatch):
  """At the scale of the most demanding; alone each has its own."""
  from big_siglip.data import fast_images

  scales = []
  decode = fast_images.decode

  def counted(data, height, width, scale):
    scales.append(scale)
    return decode(data, height, width, scale)

  monkeypatch.setattr(fast_images, "decode", counted)
  large, small = Pixels(240, name="large"), Pixels(60, name="small")

  def view(*views):
    source = sources.open_source("folder", "all", photos)
    examples = [source[i] for i in range(COUNT)]
    out = empty(union(v.fields(0) for v in views), COUNT)
    seeds = [(3, 0, i) for i in range(COUNT)]
    assert not fill(views, 0, examples, seeds, out, fast=True)
    seen, scales[:] = list(scales), []
    return out, seen

  both, seen = view(small, large)
  assert seen == COUNT * [0.5]
  alone, seen = view(large)
  assert seen == COUNT * [0.5]
  np.testing.assert_array_equal(both["large"], alone["large"])
  assert view(small)[1] == COUNT * [0.125]


def test_two_views_of_one_array_are_refused(photos):
  with pytest.raises(ValueError, match="two views make image of a batch"):
    _batches(photos, (Pixels(16), Pixels(8)))
  with pytest.raises(ValueError, match="two views make index"):
    union([{"index": Field((), "int64")}, {"index": Field((), "int64")}])


def test_buffers_are_those_of_the_fields():
  fields = union([Pixels(4).fields(0), Tokens(None, 5).fields(0)])
  batch = empty(fields, 3)
  assert batch["image"].shape == (3, 4, 4, 3)
  assert batch["image"].dtype == np.uint8
  assert batch["text"].shape == (3, 5) and batch["text"].dtype == np.int32
