"""The page's server in a process of its own, and how tests talk to it."""

import contextlib
import http.client
import io
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import types

from absl import logging as absl_logging
import jax
import model_cases
import numpy as np
from PIL import Image
import runs
import uvicorn

import big_siglip
from big_siglip import embeddings
from big_siglip.embeddings import description as descriptions
from big_siglip.embeddings.index import Choice
from big_siglip.models import SigLIP
from big_siglip.page.app import make_app
from big_siglip.page.gallery import Gallery
from big_siglip.page.limits import Limits
from big_siglip.page.scorer import Scorer

COLOURS = {
  "red": (220, 30, 40),
  "green": (20, 160, 60),
  "blue": (30, 60, 210),
  "yellow": (240, 220, 40),
}
SECRET = (1, 2, 3)  # The colour of an image that must not be shown.
# Keys of embeddings that somebody else made, and that lead out or nowhere.
HOSTILE = (
  "../secret.png",
  "folder/../../secret.png",
  "{}/secret.png",
  "link.png",
  "linked/secret.png",
  "ring.png",
  "notes.txt",
  "bomb.png",
  "gone.png",
  "folder",
  "nul\0.png",
  "x" * 5_000,
  "",
)
# Of red.png, and hostile as well.
CAPTIONS = ("<img src=x onerror=alert(1)>", "</li><script>alert(2)</script>")
DATA = dict(
  tokenizer="bytes", lowercase=True, clean="none", pad_id=1, resize="bilinear"
)


def make_place(folder, **image):
  """Makes a model, photos beside a secret, and their embeddings.

  Args:
    folder: where to.
    **image: fields of `config.model.image` other than usual.

  Returns:
    `folder`, `model` (loaded), `photos`, `vectors` (a folder), `keys`, `rows`.
  """
  config = model_cases.model_config(
    text=dict(vocab_size=259, length=16), image=image, embed_dim=32
  )
  params = jax.device_put(model_cases.random_params(SigLIP(config)))
  path = folder / "model"
  model_cases.save_model(path, params, config, DATA)
  photos = folder / "photos"
  (photos / "folder").mkdir(parents=True)
  lines = [f"red.png,{caption}\n" for caption in CAPTIONS]
  (photos / "captions.csv").write_text("".join(["image,caption\n", *lines]))
  rng = np.random.default_rng(0)
  for name, colour in COLOURS.items():
    pixels = np.clip(colour + rng.normal(0, 20, (60, 90, 3)), 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(photos / f"{name}.png")
  Image.new("RGB", (9, 9), SECRET).save(folder / "secret.png")
  (photos / "link.png").symlink_to(folder / "secret.png")
  (photos / "linked").symlink_to(folder)
  (photos / "ring.png").symlink_to(photos / "ring.png")
  (photos / "notes.txt").write_text("secret")
  (photos / "bomb.png").write_bytes(bomb())
  keys = [f"{name}.png" for name in COLOURS]
  keys += [key.format(folder) for key in HOSTILE]
  model = big_siglip.load(str(path))
  rows = _embed(model, photos, keys)
  vectors = folder / "vectors"
  _write(model, vectors, embeddings.Inputs(photos, keys), rows)
  return types.SimpleNamespace(
    folder=folder,
    checkpoint=path,
    model=model,
    photos=photos,
    vectors=vectors,
    keys=keys,
    rows=rows,
  )


def embed_texts(place, texts):
  """Returns a folder of the texts' embeddings."""
  folder = place.folder / "texts"
  keys = [str(i) for i in range(len(texts))]
  inputs = embeddings.Inputs(place.folder / "texts.txt", keys, texts)
  _write(place.model, folder, inputs, place.model.embed_texts(texts))
  return folder


def _embed(model, photos, keys):
  good = [photos / f"{name}.png" for name in COLOURS]
  rows = np.random.default_rng(1).normal(size=(len(keys), 32))
  rows = np.float32(rows / np.linalg.norm(rows, axis=1, keepdims=True))
  rows[: len(good)] = model.embed_images(good)
  return rows


def _write(model, folder, inputs, rows):
  made = embeddings.describe_model(model, str(folder.parent / "model"))
  writer = embeddings.Writer(
    folder, descriptions.describe(inputs, made, "float32", 1_000)
  )
  writer.write(0, inputs.keys, inputs.texts, rows, [])
  writer.close()


def bomb(side=20_000):
  """Returns a small PNG of so many pixels in each direction."""
  stream = io.BytesIO()
  Image.new("1", (side, side)).save(stream, "PNG")
  return stream.getvalue()


@contextlib.contextmanager
def serve(*flags):
  """Yields (port, process, lines of its errors) once the page can be opened."""
  process = subprocess.Popen(
    [sys.executable, "tools/serve.py", "--port=0", *map(str, flags)],
    cwd=runs.ROOT,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  errors = []
  # Or a full pipe would stop it.
  reader = threading.Thread(target=lambda: errors.extend(process.stderr))
  reader.start()
  try:
    said = process.stdout.readline()
    match = re.search(r"http://\S+:(\d+)", said)
    if not match:
      process.wait()
      reader.join()
      raise AssertionError("".join([said, *errors]))
    yield int(match[1]), process, errors
  finally:
    process.terminate()
    process.wait(timeout=60)
    reader.join()
    process.stdout.close()
    process.stderr.close()


@contextlib.contextmanager
def serve_here(
  place, folder=None, *, index="exact", prefix="", heads=None, **limits
):
  """Yields the port of a server in this process.

  Args:
    place: of `make_place`.
    folder: of embeddings to search; None: none.
    index: how.
    prefix: of paths.
    heads: classifiers by their names.
    **limits: other than those of `Limits`.
  """
  limits = Limits(**limits)
  gallery = folder and Gallery(
    folder, place.model, str(place.checkpoint), limits, Choice(index)
  )
  scorer = Scorer(place.model, limits)
  app = make_app(scorer, "tiny", gallery, limits, prefix=prefix, heads=heads)
  # Configuring logs closes the handlers there are, and absl's its stream.
  absl_logging.get_absl_handler().python_handler.setStream(sys.__stderr__)
  config = uvicorn.Config(app, lifespan="off", log_level="error")
  server = uvicorn.Server(config)
  with socket.create_server(("127.0.0.1", 0)) as listener:
    thread = threading.Thread(target=server.run, args=[[listener]])
    thread.start()
    try:
      yield listener.getsockname()[1]
    finally:
      server.should_exit = True
      thread.join()


def apart_from_progress(lines):
  """Returns the lines that say more than what the server is at."""
  told = ("compiling ", "reading ", "loading ")
  return [line for line in lines if not line.startswith(told)]


def ask(port, method, path, body=None, headers=None):
  """Returns (status, headers, body: of JSON what it says, or bytes)."""
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
  with contextlib.closing(connection):
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    content = answer.read()
    if answer.headers["Content-Type"] == "application/json":
      content = json.loads(content)
    return answer.status, answer.headers, content


def form(images=(), labels=(), boundary="b0undary", **fields):
  """Returns (body, headers) of a form.

  Args:
    images: (name, bytes) of each, or bytes that are sent as text.
    labels: texts or bytes, a field each; or (name, bytes) sent as files.
    boundary: between parts.
    **fields: lists of texts of other fields.
  """
  parts = []
  fields = {"images": images, "labels": labels, **fields}
  for field, values in fields.items():
    for value in values:
      head = f'Content-Disposition: form-data; name="{field}"'
      if isinstance(value, tuple):
        name, value = value
        head += f'; filename="{name}"\r\nContent-Type: image/png'
      value = value.encode() if isinstance(value, str) else value
      parts.append(f"--{boundary}\r\n{head}\r\n\r\n".encode() + value + b"\r\n")
  body = b"".join([*parts, f"--{boundary}--\r\n".encode()])
  return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def classify(port, images, labels):
  """Returns (status, answer); images as paths or as in `form`."""
  images = [
    (image.name, image.read_bytes())
    if isinstance(image, pathlib.Path)
    else image
    for image in images
  ]
  status, _, answer = ask(
    port, "POST", "/api/classify", *form(images, ["\n".join(labels)])
  )
  return status, answer
