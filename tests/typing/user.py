"""A user's program, as type checkers see it; nobody runs it.

`make lint` checks it with the rules that a user has. A line that ends in
`type: ignore` is a mistake that must be found: where it is not found, the
comment is reported.
"""

import pathlib

from ml_collections import ConfigDict
import numpy as np
from PIL import Image

import big_siglip


def right(photos: pathlib.Path) -> None:
  """What is meant to be written."""
  model = big_siglip.load("models/b16")
  model = big_siglip.load(pathlib.Path("models/b16"), dtype="bfloat16")
  model = big_siglip.load("runs/a", device="cpu:0", batch_size=8)
  rows: np.ndarray = model.embed_images(["cat.jpg", pathlib.Path("dog.png")])
  rows = model.embed_images(photos.glob("*.jpg"), batch_size=2, progress=True)
  rows = model.embed_images([b"bytes", Image.new("RGB", (8, 8)), rows])
  rows = model.embed_texts(["a cat"]) @ rows.T
  rows = model.embed_texts(text for text in ("a", "b"))
  rows = model.probabilities(["cat.jpg"], ["a cat", "a dog"])
  rows = model.logits(["cat.jpg"], ["a cat"]) * model.logit_scale
  kept: big_siglip.Model = model
  config: ConfigDict = big_siglip.load_config("folder", total_steps=3)
  config = big_siglip.load_config(photos / "mine.py", data=dict(path="a"))
  config.batch_size = 32
  run = big_siglip.train(config, photos / "run")
  step: int = run.step + 1
  loss: float = run.metrics["loss"]
  big_siglip.load(run.folder)
  results = big_siglip.evaluate(kept, config.evals)
  results = big_siglip.evaluate("runs/a")
  accuracy: float = results["test"].metrics["accuracy"]
  try:
    big_siglip.load("nowhere")
  except big_siglip.UserError as error:
    print(str(error), step, loss, accuracy, big_siglip.__version__)


def wrong(model: big_siglip.Model, config: ConfigDict) -> None:
  """Each of these is told by a type checker."""
  big_siglip.load()  # type: ignore
  big_siglip.load(3)  # type: ignore
  big_siglip.load("a", "float32")  # type: ignore
  big_siglip.load("a", dtype="float16")  # type: ignore
  big_siglip.load("a", batchsize=3)  # type: ignore
  big_siglip.load("a", batch_size="3")  # type: ignore
  big_siglip.lod("a")  # type: ignore
  model.embed_images(pathlib.Path("cat.jpg"))  # type: ignore
  model.embed_images([3])  # type: ignore
  model.embed_images(["cat.jpg"], 3)  # type: ignore
  model.embed_texts(None)  # type: ignore
  model.embed_texts([None])  # type: ignore
  model.embed_text(["a cat"])  # type: ignore
  model.logits(["cat.jpg"])  # type: ignore
  words: list[str] = model.embed_texts(["a"])  # type: ignore
  model.batch_size = 3  # type: ignore
  big_siglip.load_config(3)  # type: ignore
  big_siglip.train("digits", "runs/a")  # type: ignore
  big_siglip.train(config)  # type: ignore
  big_siglip.train(config, 3)  # type: ignore
  step: str = big_siglip.train(config, "runs/a").step  # type: ignore
  big_siglip.evaluate(3)  # type: ignore
  print(big_siglip.evaluate("a")["test"].metric, words, step)  # type: ignore
