"""The Python face: what a user's own program or notebook calls."""

import copy
import inspect
import io
import os
import pathlib
import pickle
import pydoc
import re
import shutil
import signal
import textwrap
import threading

import jax
import numpy as np
from PIL import Image
import pytest
import runs

import big_siglip
from big_siglip import build, metrics
from big_siglip.run.interrupts import Interrupts
from big_siglip.trained.classifier import (
  Classifier,
  describe_tower,
  Description,
  Head,
  write,
)

RED = np.full((8, 9, 3), (250, 0, 0), np.uint8)
CHANGES = {
  "batch_size": 16,
  "total_steps": 2,
  "model": {
    "image": dict(image_size=16, pooling="gap", width=32, depth=1, mlp_dim=64),
    "text": dict(width=32, depth=1, mlp_dim=64, length=16),
  },
  "data.num_threads": 1,
  "evals": {"test": {"every": 2}},
  "checkpoint": {"every": 1},
}


@pytest.fixture(scope="module")
def model(short_run):
  return big_siglip.load(short_run)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  folder = tmp_path_factory.mktemp("photos")
  for number in range(5):
    pixels = np.full((20, 30, 3), 40 * number, np.uint8)
    Image.fromarray(pixels).save(folder / f"{number}.png")
  (folder / "bad.png").write_bytes(b"no image")
  return folder


@pytest.fixture
def nobody_else_hears():
  """A program that another test ran in this process may still listen."""
  before = signal.set_wakeup_fd(-1)
  yield
  signal.set_wakeup_fd(before)


def config(**changes):
  runs.scratch()
  return big_siglip.load_config(runs.CONFIG, **{**CHANGES, **changes})


def test_a_model_is_one_line(model, short_run):
  said = repr(model)
  assert "\n" not in said and str(short_run) in said
  count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
  assert f"{count / 1e3:.1f} k parameters" in said
  assert "SigLIP, image 1x32/8 at 16 px, text 1x32 of 16 tokens" in said
  assert "float32 on 8 cpus" in said


def examples(thing):
  """Returns the code of each "Example:" in a docstring."""
  parts = re.split(r"^Example:\n", inspect.getdoc(thing) or "", flags=re.M)
  found = []
  for part in parts[1:]:
    end = re.search(r"^\S", part, re.M)
    found.append(textwrap.dedent(part[: end.start()] if end else part))
  return found


def test_help_shows_examples_that_run(short_run, tmp_path, monkeypatch):
  """With the digits' tiny model in the place of those that they name."""
  for name in ("runs/digits", "models/b16"):
    shutil.copytree(short_run, tmp_path / name)
  for name in ("cat.jpg", "dog.png", "dog.jpg"):
    Image.fromarray(RED).save(tmp_path / name)
  save_classifier(tmp_path / "classifiers" / "birds", short_run)
  # It resumes the run that lies there, which is over.
  finished = runs.config(total_steps=6, evals__test__every=3)
  load_config = big_siglip.load_config

  def load_tiny(name, **changes):
    assert load_config(name, **changes).total_steps
    return copy.deepcopy(finished)

  monkeypatch.setattr(big_siglip, "load_config", load_tiny)
  monkeypatch.chdir(tmp_path)
  own = big_siglip.Model
  things = [big_siglip, big_siglip.load, load_config, big_siglip.train]
  things += [big_siglip.evaluate, own, own.embed_images, own.embed_texts]
  things += [own.probabilities, own.classifier, own.embed_classes, Classifier]
  text = (runs.ROOT / "docs" / "python.md").read_text()
  first_documented = re.findall(r"```python\n(.*?)```", text, re.S)[:1]
  for thing in things:
    assert "Example:" in pydoc.plain(pydoc.render_doc(thing)), thing
    for code in examples(thing) + first_documented * (thing is big_siglip):
      names = {
        "big_siglip": big_siglip,
        "pathlib": pathlib,
        "model": big_siglip.load("models/b16"),
        "PHOTOS": tmp_path,
      }
      exec(code, names)
  with pytest.raises(AttributeError, match="no attribute 'Modell'"):
    _ = big_siglip.Modell
  assert set(dir(big_siglip)) == {*big_siglip.__all__, "__version__"}


def save_classifier(folder, checkpoint):
  model = big_siglip.load(checkpoint)
  about = Description(
    labels=["a robin", "a wren"],
    checkpoint=str(checkpoint),
    data="birds",
    images=4,
    l2=1.0,
    measured={
      "accuracy": 1.0,
      "low": 0.3,
      "high": 1.0,
      "per_class": 1.0,
      "images": 2,
    },
    **describe_tower(model.params, model.config),
  )
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(32, 2)).astype(np.float32)
  write(folder, Head(weights, np.zeros(2, np.float32), about))


@pytest.mark.parametrize(
  ("path", "said"),
  [
    (3, "path=3: must be a string or a pathlib.Path"),
    (None, "path=None: must be"),
    ("", "path='': must name a model"),
    (pathlib.Path("nowhere"), "nowhere: no such file or folder"),
  ],
)
def test_what_is_no_model_is_told_in_one_line(path, said):
  with pytest.raises(big_siglip.UserError, match=re.escape(said)) as error:
    big_siglip.load(path)
  assert "\n" not in str(error.value)


def test_anything_in_order_is_a_list(model, photos):
  files = [photos / f"{number}.png" for number in range(5)]
  rows = model.embed_images(files)
  assert rows.shape == (5, 32) and rows.dtype == np.float32
  opened = [Image.open(file) for file in files]
  arrays = np.stack([np.asarray(image) for image in opened])
  for images in (
    [str(file) for file in files],
    tuple(file.read_bytes() for file in files),
    opened,
    arrays,
    (file for file in files),
    [file.open("rb") for file in files],
    [io.BytesIO(file.read_bytes()) for file in files],
  ):
    np.testing.assert_allclose(model.embed_images(images), rows, atol=1e-6)
  for size in (1, 2, 64):
    found = model.embed_images(files, batch_size=size)
    np.testing.assert_allclose(found, rows, atol=1e-6)
  texts = ["a one", "a two"]
  expected = model.embed_texts(texts)
  for given in (tuple(texts), np.array(texts), iter(texts)):
    np.testing.assert_array_equal(model.embed_texts(given), expected)
  assert model.embed_images([]).shape == model.embed_texts([]).shape == (0, 32)
  assert model.probabilities(iter(files), iter(texts)).shape == (5, 2)


def test_what_is_no_list_is_told(model, photos):
  file = photos / "0.png"
  for images in (str(file), file, file.read_bytes(), Image.open(file), RED):
    with pytest.raises(big_siglip.UserError, match=r"^images=.* be a list of"):
      model.embed_images(images)
  for values in (None, 3, {"a"}, {"a": 1}):
    with pytest.raises(big_siglip.UserError, match=r"^texts=.* be a list of"):
      model.embed_texts(values)
  with pytest.raises(big_siglip.UserError) as error:
    model.embed_texts("a cat")
  said = "texts='a cat': must be a list of texts, such as ['a cat']"
  assert str(error.value) == said


def test_what_is_no_good_is_named_with_its_place(model, photos):
  good = photos / "0.png"
  closed, ended = Image.open(good), io.BytesIO()
  closed.close()
  ended.close()
  for image, said in [
    (photos / "gone.png", f"'{photos}/gone.png': No such file or directory"),
    (photos / "bad.png", "bad.png': is no image of a known format"),
    (b"no image", "<bytes>: is no image of a known format"),
    (None, "None: must be the path of a file, its bytes, a file op"),
    (closed, "cannot be read (Operation on closed image)"),
    ("https://a.b/c.jpg", "'https://a.b/c.jpg': is an address: download"),
    (io.StringIO("a"), "<_io.StringIO>: must be the path of a file"),
    (ended, "<_io.BytesIO>: cannot be read (I/O operation on closed file"),
    (RED[:0], "dtype uint8 and shape [0, 9, 3]: must be uint8"),
    (np.float32(RED), "dtype float32 and shape [8, 9, 3]: must be uint8"),
    ({"bytes": b""}, "<dict>: must be the path of a file"),
  ]:
    with pytest.raises(big_siglip.UserError, match=re.escape(said)) as error:
      model.embed_images(x for x in (good, good, image, good))
    message = str(error.value).replace(str(photos), "")
    assert message.startswith("images[2]=") and "\n" not in message
  for text, said in [
    (None, "texts[1]=None: must be a string"),
    (float("nan"), "texts[1]=nan: must be a string"),
    (["b"], "texts[1]=<list>: must be a string"),
    ("\ud800", "is no Unicode text"),
  ]:
    with pytest.raises(big_siglip.UserError, match=re.escape(said)):
      model.embed_texts(["a", text])


def test_prompts_and_prepared_images_are_checked(model):
  for prompts, said in [
    ("a cat", "prompts='a cat': must be a list of texts, such as ['a cat']"),
    (["a cat"], "prompts[0]='a cat': must be a list of texts, such as"),
    ([["a"], []], "prompts[1]=[]: must have at least one text"),
  ]:
    with pytest.raises(big_siglip.UserError, match=re.escape(said)):
      model.embed_classes(prompts)
  assert model.embed_classes([]).shape == (0, 32)
  prepared = model.prepare_image(RED)
  said = "images[1]=<numpy.ndarray>: must be of Model.prepare_image, uint8 [16,"
  with pytest.raises(big_siglip.UserError, match=re.escape(said)):
    model.embed_prepared([prepared, RED])


def test_a_model_is_copied_and_a_pickle_says_what_to_do(model, short_run):
  for other in (copy.copy(model), copy.deepcopy(model)):
    assert other is not model and other.params is model.params
    np.testing.assert_array_equal(
      other.embed_texts(["a"]), model.embed_texts(["a"])
    )
  said = (
    f"cannot be pickled; load it where it is used: big_siglip.load('{short_run}"
  )
  with pytest.raises(TypeError, match=re.escape(said)):
    pickle.dumps(model)


def test_images_are_read_as_they_are_needed(model, photos):
  taken = []

  def images():
    for number in range(9):
      taken.append(number)
      yield photos / f"{number % 5}.png" if number != 3 else None

  with pytest.raises(big_siglip.UserError, match=r"^images\[3\]=None"):
    model.embed_images(images(), batch_size=2)
  assert taken == [0, 1, 2, 3]


def test_progress_is_told_on_standard_error_when_asked_for(
  model, photos, capfd, monkeypatch
):
  from big_siglip import bars, progress

  monkeypatch.setattr(progress, "_SILENCE", 0.0)
  monkeypatch.setattr(bars, "on_terminal", lambda: False)
  files = [photos / "0.png"] * 4
  model.embed_images(files)
  assert capfd.readouterr() == ("", "")
  model.embed_images(files, batch_size=1, progress=True)
  output, error = capfd.readouterr()
  assert output == "" and " of 4 images" in error


def test_dtype_and_devices_are_chosen(model, photos, short_run):
  files = [photos / f"{number}.png" for number in range(3)]
  exact = model.embed_images(files)
  half = big_siglip.load(short_run, dtype="bfloat16", device="cpu:3")
  rows = half.embed_images(files)
  assert rows.dtype == np.float32
  difference = np.abs(rows - exact).max()
  assert 0 < difference < 0.02, "it computes in bfloat16"
  assert "bfloat16 on 1 cpu>" in repr(half)
  leaf = jax.tree.leaves(half.params)[0]
  assert leaf.devices() == {jax.devices()[3]}
  some = big_siglip.load(short_run, device=jax.devices()[:2], batch_size=3)
  np.testing.assert_allclose(some.embed_images(files), exact, atol=1e-6)
  assert some.batch_size == 3 and some.mesh.size == 2
  for wrong, said in [
    (dict(dtype="float16"), "dtype='float16': must be one of float32, bfl"),
    (dict(device="gpu"), "device='gpu': not among those of JAX here: cpu:0"),
    (dict(device="cpu:8"), "device='cpu:8': not among"),
    (dict(device="cpu:x"), "device='cpu:x': not among"),
    (dict(device=0), "device=[0]: must be a platform such as 'cpu'"),
    (dict(batch_size=0), "batch_size=0: must be a whole number from 1 on"),
  ]:
    with pytest.raises(big_siglip.UserError, match=re.escape(said)):
      big_siglip.load(short_run, **wrong)


def test_a_config_is_changed_and_every_mistake_is_told():
  changed = config(data={"path": pathlib.Path("x")}, optimizer={"b1": 0.5})
  assert (changed.data.path, changed.optimizer.b1) == ("x", 0.5)
  assert changed.optimizer.warmup_steps == 0, "it follows total_steps"
  assert config().evals and not config(evals={}).evals
  wrong = {"totl_steps": 3, "batch_size": "a", "data": 3, "data.nam": "x"}
  with pytest.raises(big_siglip.UserError) as error:
    config(**wrong, model={"dtype": "half"})
  for said in (
    "config.totl_steps: no such field; did you mean 'total_steps'?",
    "config.batch_size='a': must be of type int",
    "config.data=3: must be a dict of its fields",
    "config.data.nam: no such field; did you mean 'name'?",
    "config.model.dtype='half': must be one of",
  ):
    assert said in str(error.value)
  with pytest.raises(big_siglip.UserError, match="^name=none.py: no such file"):
    big_siglip.load_config("none.py")


def test_training_and_evaluating_twice_in_one_process(tmp_path, capfd):
  run = big_siglip.train(config(), tmp_path / "run")
  assert (run.step, run.finished) == (2, True)
  assert run.metrics == metrics.last_metrics(tmp_path / "run")
  accuracy = run.metrics["evals/test/accuracy"]
  again = big_siglip.train(config(), str(tmp_path / "run"))
  assert again == run
  results = big_siglip.evaluate(run.folder)
  assert results["test"].metrics["accuracy"] == pytest.approx(accuracy)
  loaded = big_siglip.load(run.folder)
  same = big_siglip.evaluate(loaded, config().evals)
  assert same["test"].metrics == results["test"].metrics
  assert "done: 2 steps" in capfd.readouterr().out
  changed = config()
  changed.batch_size = 0
  for call, said in [
    (lambda: big_siglip.train(changed, tmp_path), "config.batch_size=0: must"),
    (lambda: big_siglip.train("digits", tmp_path), "config='digits': must be"),
    (lambda: big_siglip.train(config(), 3), "folder=3: must be"),
    (lambda: big_siglip.evaluate(3), "model=3: must be"),
    (lambda: big_siglip.evaluate(loaded, "no.py"), "evals=no.py: no such"),
  ]:
    with pytest.raises(big_siglip.UserError, match=re.escape(said)):
      call()


@pytest.mark.usefixtures("nobody_else_hears")
def test_an_interrupt_saves_and_returns(tmp_path, monkeypatch, capfd):
  """As a notebook's: the process is not ours to end."""
  evaluators = build.evaluators

  def interrupting(settings, mesh):
    (evaluator,) = evaluators(settings, mesh).values()

    def evaluate(params):
      os.kill(os.getpid(), signal.SIGINT)
      return evaluator(params)

    return {"test": evaluate}

  handler = signal.getsignal(signal.SIGINT)
  monkeypatch.setattr(build, "evaluators", interrupting)
  changed = config(total_steps=3, evals={"test": {"every": 1}})
  run = big_siglip.train(changed, tmp_path / "run")
  assert (run.step, run.finished) == (1, False)
  assert "Ctrl-C: will save and stop" in capfd.readouterr().out
  assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.usefixtures("nobody_else_hears")
def test_an_interrupt_before_the_first_step_is_one(tmp_path, monkeypatch):
  def interrupting(settings, mesh):
    os.kill(os.getpid(), signal.SIGINT)
    raise AssertionError("nobody was interrupted")

  handler = signal.getsignal(signal.SIGINT)
  monkeypatch.setattr(build, "evaluators", interrupting)
  with pytest.raises(KeyboardInterrupt):
    big_siglip.train(config(), tmp_path / "run")
  assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.usefixtures("nobody_else_hears")
def test_a_second_interrupt_ends_it_at_once(capfd):
  stop = Interrupts()
  try:
    assert not stop.requested(1)
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested(2)
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
  finally:
    stop.close()
  assert capfd.readouterr().out.count("will save and stop") == 1


def test_training_in_a_thread_listens_to_nothing(tmp_path, short_run):
  """It may: the run that is there already is over at once."""
  folder = shutil.copytree(short_run, tmp_path / "run")
  changed = runs.config(total_steps=6, evals__test__every=3)
  found, handler = [], signal.getsignal(signal.SIGINT)
  thread = threading.Thread(
    target=lambda: found.append(big_siglip.train(changed, folder))
  )
  thread.start()
  thread.join()
  assert found[0].finished and found[0].step == 6
  assert signal.getsignal(signal.SIGINT) is handler
