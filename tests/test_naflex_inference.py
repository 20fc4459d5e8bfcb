"""NaFlex models in use: loaded, converted, embedding, and their patches."""

import json
import shutil

import jax
from ml_collections import ConfigDict
import model_cases
import numpy as np
from PIL import Image
import programs
import pyarrow.parquet as pq
import pytest

import big_siglip
from big_siglip.errors import UserError
from big_siglip.models import SigLIP
from big_siglip.weights import export

SIZES = ((40, 40), (40, 90), (13, 200), (300, 17), (1, 1), (64, 3))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  folder = tmp_path_factory.mktemp("photos")
  rng = np.random.default_rng(0)
  files = []
  for number, size in enumerate(SIZES):
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    files.append(folder / f"{number}.png")
    Image.fromarray(pixels).save(files[-1])
  return files


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """Folders of one model: of squares, and as it keeps an image's shape."""
  folder = tmp_path_factory.mktemp("models")
  model = model_cases.model_config(
    image={"size": "mu/8", "image_size": 32}, text={"vocab_size": 259}
  )
  params = model_cases.random_params(SigLIP(model))
  data = dict(
    tokenizer="bytes", lowercase=True, clean="none", pad_id=1, resize="bilinear"
  )
  config = ConfigDict({"model": model, "data": data})
  export.to_huggingface(folder / "exported", params, config)
  made = {}
  for name, flags in (
    ("squares", ()),
    ("naflex", ("--max_patches=16",)),
  ):
    made[name] = str(folder / name)
    status, output, error = programs.call(
      "tools/import_weights.py",
      f"--weights={folder / 'exported'}",
      f"--output={made[name]}",
      *flags,
    )
    assert status == 0, error
    made[f"{name} said"] = output
  return made


@pytest.fixture(scope="module")
def naflex(models):
  return big_siglip.load(models["naflex"])


def test_a_model_of_squares_is_made_one_that_keeps_shapes(models, naflex):
  assert "up to 16 patches (NaFlex)" in models["naflex said"]
  squares = big_siglip.load(models["squares"])
  jax.tree.map(np.testing.assert_array_equal, squares.params, naflex.params)
  assert "of up to 16 patches, in its own shape" in repr(naflex)
  pixels = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
  np.testing.assert_allclose(
    naflex.embed_images([pixels]), squares.embed_images([pixels]), atol=1e-5
  )


def test_images_of_any_shape_have_embeddings(naflex, photos):
  together = naflex.embed_images(photos)
  assert np.isfinite(together).all()
  np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
  for photo, row in zip(photos, together, strict=True):
    np.testing.assert_allclose(naflex.embed_images([photo])[0], row, atol=2e-6)
  prepared = [naflex.prepare_image(photo) for photo in photos]
  np.testing.assert_allclose(
    naflex.embed_prepared(prepared), together, atol=2e-6
  )
  with pytest.raises(UserError, match=r"patches, uint8 \[16, 192\], and their"):
    naflex.embed_prepared([np.zeros((32, 32, 3), np.uint8)])


def test_an_image_in_more_patches_is_seen_finer(models, naflex, photos):
  more = big_siglip.load(models["naflex"], max_patches=40)
  assert more.prepare_image(photos[1])["grid"].tolist() == [4, 9]
  assert naflex.prepare_image(photos[1])["grid"].tolist() == [3, 5]
  assert not np.allclose(
    more.embed_images(photos[1:2]), naflex.embed_images(photos[1:2]), atol=1e-3
  )


@pytest.mark.parametrize(
  ("model", "length", "said"),
  (
    ("naflex", 0, "max_patches=0: must be a whole number from 1 on"),
    ("naflex", True, "max_patches=True: must be"),
    ("squares", 64, "squashes images to 32 x 32 pixels (no NaFlex model)"),
    ("squares", 0, "squashes images to 32 x 32 pixels (no NaFlex model)"),
  ),
)
def test_what_cannot_be_seen_is_told_in_a_line(models, model, length, said):
  with pytest.raises(UserError) as error:
    big_siglip.load(models[model], max_patches=length)
  assert said in str(error.value)
  assert len(str(error.value).splitlines()) == 1


def test_patches_lie_on_the_grid_of_their_image(naflex, photos):
  found = naflex.embed_patches(photos, kind="text")
  for photo, cells in zip(photos, found, strict=True):
    grid = naflex.prepare_image(photo)["grid"]
    assert cells.shape == (*grid, 32)
    np.testing.assert_allclose(np.linalg.norm(cells, axis=-1), 1, atol=1e-5)
  weights = naflex.embed_patches(photos, kind="attention")
  for cells in weights:
    np.testing.assert_allclose(cells.sum(axis=(0, 1)), 1, atol=1e-5)
  with pytest.raises(UserError, match="size=64: is for models of squares"):
    naflex.embed_patches(photos, size=64)


def test_the_patches_of_an_image_add_up_to_its_pool(naflex, photos):
  (cells,) = naflex.embed_patches(photos[1:2], kind="share")
  tokens = naflex.embed_patches(photos[1:2])[0]
  params = naflex.params["image"]["pool"]["attention"]
  width, heads = tokens.shape[-1], 2
  flat = tokens.reshape(-1, width)
  probe = np.asarray(naflex.params["image"]["pool"]["probe"])[0, 0]
  project = {
    name: np.asarray(params[name]["kernel"]).reshape(width, width)
    for name in ("query", "key", "value", "out")
  }
  bias = {name: np.asarray(params[name]["bias"]).ravel() for name in project}
  query = (probe @ project["query"] + bias["query"]).reshape(heads, -1)
  key = (flat @ project["key"] + bias["key"]).reshape(len(flat), heads, -1)
  value = (flat @ project["value"] + bias["value"]).reshape(key.shape)
  scores = np.einsum("hd,nhd->hn", query, key) / key.shape[-1] ** 0.5
  weights = np.exp(scores - scores.max(axis=1, keepdims=True))
  weights /= weights.sum(axis=1, keepdims=True)
  pooled = np.einsum("hn,nhd->hd", weights, value).ravel()
  expected = pooled @ project["out"] + bias["out"]
  np.testing.assert_allclose(cells.sum(axis=(0, 1)), expected, atol=1e-5)


def test_pixels_of_an_image_are_asked_in_its_own_size(naflex, photos):
  found = naflex.segment(photos, ["a cat", "grass"])
  for size, probabilities in zip(SIZES, found, strict=True):
    assert probabilities.shape == (*size, 2)
    assert np.isfinite(probabilities).all()


def test_commands_take_the_number_of_patches(models, photos):
  status, output, error = programs.call(
    "tools/classify.py",
    f"--checkpoint={models['naflex']}",
    "--labels=a cat,a dog",
    "--max_patches=24",
    "--json",
    *map(str, photos),
  )
  assert status == 0, error
  rows = [json.loads(line) for line in output.splitlines()]
  assert len(rows) == len(photos)
  model = big_siglip.load(models["naflex"], max_patches=24)
  expected = model.probabilities(photos, ["a cat", "a dog"])
  found = [
    {label: one["probability"] for label, one in row["scores"].items()}
    for row in rows
  ]
  np.testing.assert_allclose(
    [[row["a cat"], row["a dog"]] for row in found], expected, rtol=1e-4
  )
  status, _, error = programs.call(
    "tools/classify.py",
    f"--checkpoint={models['squares']}",
    "--labels=a cat",
    "--max_patches=24",
    str(photos[0]),
  )
  assert status == 2
  assert error.strip().splitlines()[-1].startswith("--max_patches=24: ") or (
    "--max_patches=24: " in error
  )


def test_a_library_of_images_is_searched_as_it_was_made(
  models, photos, tmp_path
):
  status, _, error = programs.call(
    "tools/embed.py",
    f"--checkpoint={models['naflex']}",
    f"--images={photos[0].parent}",
    f"--output={tmp_path / 'library'}",
    "--max_patches=30",
    "--batch_size=4",
  )
  assert status == 0, error
  status, output, error = programs.call(
    "tools/search.py",
    f"--embeddings={tmp_path / 'library'}",
    f"--image={photos[2]}",
    "--top=1",
    "--json",
  )
  assert status == 0, error
  best = json.loads(output.splitlines()[0])
  assert "2.png" in json.dumps(best)


def test_patches_of_any_grid_are_kept(models, photos, tmp_path):
  copies = tmp_path / "photos"
  copies.mkdir()
  for photo in photos:
    shutil.copy(photo, copies)
  arguments = (
    "tools/embed.py",
    f"--checkpoint={models['naflex']}",
    f"--images={copies}",
    f"--output={tmp_path / 'patches'}",
    "--patches=last",
    "--dtype=float32",
    "--batch_size=4",
  )
  status, _, error = programs.call(*arguments)
  assert status == 0, error
  described = json.loads((tmp_path / "patches/_embedding.json").read_text())
  assert described["patches"]["grid"] is None
  width = described["patches"]["width"]
  assert described["width"] == 16 * width
  model = big_siglip.load(models["naflex"])
  # Another name of the same bytes has its grid, too.
  shutil.copy(photos[1], copies / "again.png")
  status, _, error = programs.call(*arguments, "--update")
  assert status == 0, error
  table = pq.read_table(tmp_path / "patches").to_pylist()
  assert len(table) == len(photos) + 1
  for row in table:
    (expected,) = model.embed_patches([copies / row["key"]])
    grid = row["grid_rows"], row["grid_columns"]
    assert grid == expected.shape[:2]
    found = np.array(row["embedding"], np.float32).reshape(16, width)
    count = grid[0] * grid[1]
    np.testing.assert_allclose(
      found[:count].reshape(expected.shape), expected, atol=1e-5
    )
    assert not found[count:].any()


def test_what_a_model_sees_is_drawn(models, photos, tmp_path):
  status, output, error = programs.call(
    "tools/dense.py",
    "sight",
    f"--checkpoint={models['naflex']}",
    "--lengths=4,16,64",
    f"--output={tmp_path / 'sight.png'}",
    *map(str, photos[:3]),
  )
  assert status == 0, error
  with Image.open(output.strip()) as page:
    assert page.width > page.height > 3 * 100
  status, _, error = programs.call(
    "tools/dense.py",
    "sight",
    f"--checkpoint={models['naflex']}",
    "--lengths=4,many",
    str(photos[0]),
  )
  assert status == 2
  assert "--lengths='many': must be a whole number from 1 on" in error
  status, _, error = programs.call(
    "tools/dense.py",
    "sight",
    f"--checkpoint={models['squares']}",
    str(photos[0]),
  )
  assert status == 2
  assert "squashes images to 32 x 32 pixels (no NaFlex model)" in error
