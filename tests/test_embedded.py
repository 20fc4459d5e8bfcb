"""A text tower trained on embeddings made before: as if the image tower ran."""

import csv
import json
import pickle
import shutil
import signal

import fsspec
import numpy as np
from PIL import Image
import pyarrow.parquet as pq
import pytest
import runs
from test_embed import make_model

import big_siglip
from big_siglip import embeddings, loop, sharding
from big_siglip.command_line import load_config
from big_siglip.data.sources import open_source
from big_siglip.data.sources.embedded import EmbeddedSource
from big_siglip.embeddings.description import describe
from big_siglip.embeddings.pipeline import embed_missing
from big_siglip.errors import UserError
from big_siglip.metrics import read_metrics
from big_siglip.plan import dry_run
from big_siglip.trained import saved
from big_siglip.weights import export

COUNT = 24
LOCKED = '(("image/.*", {"freeze": True}),)'
# The model of `make_model`, with a text tower of its own.
MODEL = {
  "model.image.size": "mu/8",
  "model.image.image_size": 16,
  "model.image.pooling": "map",
  "model.image.width": 32,
  "model.image.mlp_dim": 128,
  "model.image.depth": 1,
  "model.image.patch_size": 8,
  "model.image.num_heads": 2,
  "model.embed_dim": 32,
  "init.towers": "image",
  "data.crop_min_area": 1.0,
  "total_steps": 6,
  "batch_size": 8,
  "log_every": 1,
  "checkpoint.every": 6,
  "evals.test.kind": "retrieval",
  "evals.test.split": "all",
  "evals.test.every": 6,
  "evals.test.batch_size": 8,
}


# One worker trains the model that all of these look at.
pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  return make_model(tmp_path_factory.mktemp("model") / "m")


def write_photos(folder):
  """Writes images of noise, two captions of each."""
  (folder / "images").mkdir(parents=True)
  rng = np.random.default_rng(0)
  rows = []
  for number in range(COUNT):
    name = f"{number:02}.png"
    pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "images" / name)
    rows += [(name, f"noise {number}"), (name, f"no {number * 7}")]
  with (folder / "captions.csv").open("w", newline="") as file:
    csv.writer(file).writerows([("image", "caption"), *rows])
  return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  return write_photos(tmp_path_factory.mktemp("photos") / "p")


def embed(checkpoint, photos, output):
  """Does what tools/embed.py does, in this process."""
  inputs = embeddings.read_images(str(photos))
  model = big_siglip.load(checkpoint)
  made = embeddings.describe_model(model, checkpoint)
  description = describe(inputs, made, "float32", shard_size=10)
  writer = embeddings.Writer(output, description)
  embed_missing(
    writer,
    model,
    inputs,
    {number: description.shard(number) for number in writer.missing},
    batch_size=10,
    num_threads=1,
    progress=lambda count: None,
  )
  writer.close()
  return output


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, checkpoint, photos):
  return embed(checkpoint, photos, tmp_path_factory.mktemp("embedded") / "e")


@pytest.fixture(autouse=True)
def _own_signals():
  """Gives back the handlers that the trainer replaces."""
  numbers = (signal.SIGINT, signal.SIGTERM)
  handlers = [signal.getsignal(number) for number in numbers]
  yield
  for number, handler in zip(numbers, handlers, strict=True):
    signal.signal(number, handler)


def make_config(checkpoint, name, path, **changes):
  named = {key.replace("__", "."): value for key, value in changes.items()}
  settings = {
    **runs.TINY,
    **MODEL,
    "init.path": checkpoint,
    "data.name": name,
    "data.path": str(path),
    "data.split": "all",
    "evals.test.data": name,
    "evals.test.path": str(path),
    **named,
  }
  flags = [f"--config.{k}={v}" for k, v in settings.items() if v is not None]
  runs.scratch()
  return load_config(runs.CONFIG, flags)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, checkpoint, photos, embedded):
  """Runs that computed the locked tower, and that did not."""
  folder = tmp_path_factory.mktemp("trained")
  locked = make_config(checkpoint, "folder", photos, optimizer__rules=LOCKED)
  loop.train(locked, str(folder / "locked"))
  loop.train(
    make_config(checkpoint, "embeddings", embedded), str(folder / "embedded")
  )
  return folder


def params_of(run):
  folder, step = saved.find(str(run))
  config = saved.load_config(folder)
  return runs.flatten(saved.load_params(step, config, sharding.make_mesh()))


def test_training_equals_that_with_the_locked_tower(trained):
  one, other = (read_metrics(trained / name) for name in ("locked", "embedded"))
  assert [m["step"] for m in one] == [m["step"] for m in other]
  losses = [m["loss"] for m in one if "loss" in m]
  assert len(losses) == 6
  assert len(set(losses)) == 6
  for mine, theirs in zip(one, other, strict=True):
    assert mine.keys() == theirs.keys()
    for name in ("loss", "grad_norm", "logit_scale", "logit_bias"):
      if name in mine:  # Evaluations have lines of their own.
        assert mine[name] == pytest.approx(theirs[name], rel=2e-6)
  assert "evals/test/image_to_text/recall@5" in one[-1] | one[-2]
  one, other = params_of(trained / "locked"), params_of(trained / "embedded")
  assert one.keys() == other.keys(), "whole again"
  for path, array in one.items():
    if path.startswith("image/"):
      np.testing.assert_array_equal(array, other[path])
    # Softmax does not see a bias of all keys: its gradient is rounding alone,
    # which Adam makes as large as any other.
    elif not path.endswith("attention/key/bias"):
      # Here and there Adam divides by next to nothing; on the whole it has
      # moved each number by a thousandth and more.
      off = np.sqrt(np.mean((array - other[path]) ** 2))
      assert off < 5e-7, path


def test_the_image_tower_is_nowhere_in_the_run(trained):
  state = json.loads((trained / "embedded" / "config.json").read_text())
  assert state["model"]["image"]["size"] == "mu/8", "what it will be again"
  report = json.loads((trained / "embedded" / "finetuning.json").read_text())
  parts = {part.split("/")[0] for part in report["relative_change"]}
  assert parts == {"text", "logit_scale", "logit_bias"}
  kept = trained / "embedded" / "checkpoints" / "6" / "state"
  names = "".join(str(file) for file in kept.rglob("*"))
  assert not kept.exists() or "image" not in names


def test_a_whole_model_comes_out(trained, photos):
  files = sorted((photos / "images").iterdir())[:3]
  texts = ["noise 1", "noise 2"]
  one, other = (
    big_siglip.load(str(trained / name)) for name in ("locked", "embedded")
  )
  expected = one.logits(files, texts)
  np.testing.assert_allclose(
    other.logits(files, texts), expected, atol=1e-5, rtol=1e-5
  )


@pytest.mark.slow
def test_transformers_loads_what_is_exported(trained, photos, tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  run, out = trained / "embedded", tmp_path / "out"
  folder, step = saved.find(str(run))
  config = saved.load_config(folder)
  params = saved.load_params(step, config, sharding.make_mesh())
  export.to_huggingface(out, params, config)
  theirs = transformers.AutoModel.from_pretrained(out).eval()
  processor = transformers.AutoImageProcessor.from_pretrained(out)
  ours = big_siglip.load(str(run))
  files = sorted((photos / "images").iterdir())[:3]
  texts = ["noise 1", "no 7"]
  pixels = np.stack([ours.prepare_image(file) for file in files])
  seen = processor([Image.open(file) for file in files], return_tensors="np")
  seen = (seen["pixel_values"].transpose(0, 2, 3, 1) + 1) * 127.5
  assert np.abs(pixels - seen).max() <= 1.001
  pixels = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
  tokens = ours.preprocess.texts(texts)
  with torch.no_grad():
    expected = theirs(
      input_ids=torch.tensor(tokens).long(), pixel_values=torch.tensor(pixels)
    ).logits_per_image
  np.testing.assert_allclose(ours.logits(files, texts), expected, atol=1e-4)


def test_it_trains_for_longer_and_stays_whole(trained, embedded, tmp_path):
  before = trained / "embedded"
  config = make_config(str(before), "embeddings", embedded, total_steps=8)
  with config.unlocked():
    config.init.state = "all"
  config.evals = {}
  loop.train(config, str(tmp_path / "longer"))
  old, new = params_of(before), params_of(tmp_path / "longer")
  assert old.keys() == new.keys()
  for path, array in old.items():
    moved = np.abs(array - new[path]).max()
    # The text tower goes on too, though config.init.towers is still image.
    assert moved == 0 if path.startswith("image/") else 0 < moved < 0.01, path


def test_another_image_tower_is_refused_at_the_start_and_at_the_end(
  trained, embedded, tmp_path
):
  other = make_model(tmp_path / "other", seed=1)
  with pytest.raises(UserError) as error:
    config = make_config(other, "embeddings", embedded)
    loop.train(config, str(tmp_path / "run"))
  said = f"config.init.path={other}: has other parameters than the model that"
  assert said in str(error.value)
  run, step = saved.find(str(trained / "embedded"))
  config = saved.load_config(run)
  config.init.path = other
  with pytest.raises(UserError) as error:
    saved.load_params(step, config, sharding.make_mesh())
  assert said in str(error.value)


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"model__image__image_size": 24}, "image_size=24, not 16, as "),
    ({"data__resize": "bicubic"}, "resize='bicubic', not 'bilinear', as "),
    ({"model__embed_dim": 48, "model__image__head": True}, "=48, not 32, as "),
    ({"init__path": None}, "config.init.path=None: must name the weights"),
    ({"data__flip": True}, "data.flip False"),
    ({"evals__test__data": "folder"}, "config.evals.test.data='folder': must"),
    ({"data__split": "none"}, "must be one of all, train, test"),
    ({"data__path": "nowhere"}, "holds no embeddings"),
    ({"data__path": "memory://a"}, "config.data.path='memory://a': holds no"),
  ],
)
def test_what_does_not_fit_is_named(
  checkpoint, embedded, tmp_path, changes, said
):
  with pytest.raises(UserError) as error:
    config = make_config(checkpoint, "embeddings", embedded, **changes)
    loop.train(config, str(tmp_path / "run"))
  assert said in str(error.value)
  assert len(str(error.value).splitlines()) == 1


def test_examples_are_those_of_the_folder(embedded, photos):
  ours = EmbeddedSource(str(embedded), "all")
  theirs = open_source("folder", "all", str(photos))
  assert len(ours) == len(theirs) == COUNT
  table = pq.read_table(embedded / "shard-000001.parquet")
  for index in (0, 13, 23):
    assert ours[index].texts == theirs[index].texts
    assert ours[index].name == theirs[index].name
  assert table["key"][3].as_py() == ours[13].name
  np.testing.assert_array_equal(
    ours[13].image, np.float32(table["embedding"][3].as_py())
  )
  again = pickle.loads(pickle.dumps(ours))
  np.testing.assert_array_equal(again[13].image, ours[13].image)
  assert len(pickle.dumps(ours)) < 10_000
  parts = [len(EmbeddedSource(str(embedded), s)) for s in ("train", "test")]
  for split, count in zip(("train", "test"), parts, strict=True):
    assert count == len(open_source("folder", split, str(photos)))


def copy(embedded, photos, folder):
  """Copies both, so that a test may spoil them."""
  shutil.copytree(photos, folder / "p")
  shutil.copytree(embedded, folder / "e")
  made = json.loads((folder / "e" / "_embedding.json").read_text())
  made["inputs"] = str(folder / "p")
  (folder / "e" / "_embedding.json").write_text(json.dumps(made))
  return folder / "e", folder / "p" / "captions.csv"


def test_a_remote_folder_is_copied_once(
  embedded, photos, tmp_path, monkeypatch
):
  monkeypatch.setenv("BIG_SIGLIP_DATA", str(tmp_path / "cache"))
  local, captions = copy(embedded, photos, tmp_path)
  shutil.copy(captions, local)
  fs = fsspec.filesystem("memory")
  fs.put(f"{local}/", "/embedded/", recursive=True)
  for _ in range(2):
    source = EmbeddedSource("memory://embedded", "all")
    expected = EmbeddedSource(str(local), "all")
    assert len(source) == len(expected) == COUNT
    for example, same in zip(source, expected, strict=True):
      np.testing.assert_array_equal(example.image, same.image)
      assert (example.texts, example.name) == (same.texts, same.name)
    # What was copied is not asked for again.
    for file in fs.glob("/embedded/*.parquet"):
      fs.rm(file)


def test_keys_without_a_partner_are_counted(embedded, photos, tmp_path, caplog):
  folder, captions = copy(embedded, photos, tmp_path)
  lines = captions.read_text().splitlines()
  captions.write_text("\n".join([*lines[:-4], "99.png,no such image"]))
  shutil.rmtree(captions.parent / "images")  # Not needed any more.
  assert len(EmbeddedSource(str(folder), "all")) == COUNT - 2
  first, second = caplog.messages
  assert first.endswith(
    f"1 of {COUNT - 1} captioned images have no embedding, and are left out "
    "(first: 99.png)"
  )
  assert "2 of 24 embeddings have no caption" in second
  captions.write_text("image,caption\n99.png,no such image")
  with pytest.raises(UserError, match="none of its 24 embeddings is of one of"):
    EmbeddedSource(str(folder), "all")
  shutil.move(captions, folder / "captions.csv")
  (folder / "captions.csv").write_text("image,caption\n03.png,beside")
  assert EmbeddedSource(str(folder), "all")[0].texts == ("beside",)


def test_an_unfinished_or_damaged_folder_is_named(embedded, photos, tmp_path):
  folder, _ = copy(embedded, photos, tmp_path)
  for file in folder.glob(".rows-*"):
    file.unlink()
  shard = folder / "shard-000001.parquet"
  table = pq.read_table(shard)
  values = table["embedding"].combine_chunks().flatten().to_numpy().copy()
  values[5] = np.nan
  import pyarrow as pa

  spoilt = pa.FixedSizeListArray.from_arrays(pa.array(values), 32)
  pq.write_table(table.set_column(2, "embedding", spoilt), shard)
  with pytest.raises(UserError, match="holds numbers that are not finite"):
    EmbeddedSource(str(folder), "all")
  shard.unlink()
  with pytest.raises(UserError, match="holds 2 of 3 shards"):
    EmbeddedSource(str(folder), "all")


def test_a_dry_run_counts_the_text_tower_alone(
  checkpoint, embedded, photos, capsys
):
  flops = []
  for name, path in (("embeddings", embedded), ("folder", photos)):
    dry_run.run(make_config(checkpoint, name, path))
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("FLOPs a step")]
    flops.append(float(line.split()[-1]))
    zero = any(
      line.split() == ["of", "the", "image", "tower", "0"] for line in lines
    )
    assert zero == (name == "embeddings")
  assert 0 < flops[0] < flops[1]
