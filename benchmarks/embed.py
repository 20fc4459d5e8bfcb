"""Images a second of big-siglip embed against transformers' pipeline.

python -m benchmarks.embed [--photos=FOLDER] [--count=256] [--batch_size=32]

Both embed the same files with the same B/16 (224 pixels, random weights, as
weights.export.to_huggingface writes it) on this machine's CPU or GPU, in
processes of their own that take turns; the result is the median of the ratios
of neighbours, so that a machine whose speed drifts slows both. The processors'
time that each took is given as well: other programs hardly change it. Ours is
all from the list of files to the shards on disk; theirs is
pipeline("image-feature-extraction"), which reads, decodes and embeds the files
and keeps the result in memory. Says also how far the embeddings lie apart.
Loading and the first batch, which compiles, are not counted. Needs transformers
and torch (pip install -e '.[dev]') and 4 GB of memory.
"""

import argparse
import json
import os
import pathlib
import statistics
import string
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]


def write_model(folder: pathlib.Path, size: str = "B") -> None:
  """Writes a model of random weights, B/16 or so, as transformers would."""
  import jax
  from ml_collections import ConfigDict
  import sentencepiece

  from big_siglip import platforms
  from big_siglip.data.text import make_tokenizer
  from big_siglip.models import SigLIP
  from big_siglip.schema import sizes
  from big_siglip.weights import export
  from big_siglip.weights.model_config import make_model_config

  platforms.prepare()
  folder.mkdir()
  tokenizer = folder / "any.model"  # Our loader asks for one; no text is read.
  with tokenizer.open("wb") as stream:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter([string.printable] * 10),
      model_writer=stream,
      vocab_size=300,
      hard_vocab_limit=False,
      minloglevel=2,
      # As SigLIP's own: transformers pads with the end of a text.
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
    )
  tower = sizes.TOWERS[size]
  model = make_model_config(
    image=sizes.TowerSize(**{**vars(tower), "patch_size": 16}),
    image_size=224,
    text=tower,
    vocab_size=make_tokenizer(str(tokenizer)).vocab_size,
    length=64,
    embed_dim=tower.width,
  )
  data = dict(tokenizer=str(tokenizer), lowercase=True, clean="none", pad_id=1)
  config = ConfigDict({"model": model, "data": {**data, "resize": "bicubic"}})
  image = np.zeros((1, 224, 224, 3), np.uint8)
  text = np.zeros((1, 64), np.int32)
  init = jax.jit(SigLIP(model).init)
  params = init(jax.random.key(0), image, text)["params"]
  export.to_huggingface(folder, params, config)


def write_photos(folder: pathlib.Path, count: int) -> None:
  """Writes JPEGs of 500 x 375: noise of all scales, as photos are."""
  rng = np.random.default_rng(0)
  folder.mkdir()
  for number in range(count):
    image = np.zeros((375, 500, 3), np.float32)
    for scale in (4, 16, 64, 256):
      noise = rng.integers(0, 64, (scale * 3 // 4, scale, 3), np.uint8)
      image += np.asarray(Image.fromarray(noise).resize((500, 375)))
    Image.fromarray(np.uint8(image)).save(folder / f"{number:04}.jpg")


class Contestant:
  """A process that embeds the photos each time it is asked to."""

  def __init__(self, name: str, arguments: argparse.Namespace, work: str):
    """Starts it; `wait` says when it is ready."""
    settings = [work, str(arguments.batch_size), str(arguments.workers)]
    self._process = subprocess.Popen(
      [sys.executable, "-m", "benchmarks.embed", "--be", name, *settings],
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def wait(self) -> str:
    """Returns the next line that it says."""
    line = self._process.stdout.readline().strip()
    if not line:
      raise SystemExit(f"a contestant ended: {self._process.wait()}")
    return line

  def run(self) -> tuple[float, float]:
    """Returns the seconds that all photos took, and those of all processors."""
    self._process.stdin.write("\n")
    self._process.stdin.flush()
    seconds, used = self.wait().split()
    return float(seconds), float(used)

  def close(self) -> None:
    """Ends it."""
    self._process.stdin.close()
    self._process.wait()


def be_ours(work: pathlib.Path, batch_size: int, workers: int):
  """Returns a function that embeds files and returns the embeddings."""
  del workers
  import big_siglip
  from big_siglip import embeddings, platforms
  from big_siglip.embeddings import description as descriptions
  from big_siglip.embeddings.pipeline import embed_missing

  platforms.prepare()
  model = big_siglip.load(str(work / "model"))
  described = embeddings.describe_model(model, str(work / "model"))

  def embed(files):
    inputs = embeddings.Inputs(work / "photos", files)
    description = descriptions.describe(inputs, described, "float32", 10_000)
    with tempfile.TemporaryDirectory() as folder:
      writer = embeddings.Writer(pathlib.Path(folder), description)
      embed_missing(
        writer,
        model,
        inputs,
        {number: description.shard(number) for number in writer.missing},
        batch_size=batch_size,
        num_threads=os.cpu_count(),
        progress=lambda count: None,
      )
      writer.close()
      reader = embeddings.Reader(pathlib.Path(folder))
      return np.concatenate(list(reader.blocks(10_000)))

  return embed


def be_transformers(work: pathlib.Path, batch_size: int, workers: int):
  """Returns a function that embeds files and returns the embeddings."""
  import torch
  import transformers

  transformers.logging.set_verbosity_error()  # Half the model is not asked for.
  model = transformers.SiglipVisionModel.from_pretrained(work / "model")
  processor = transformers.AutoImageProcessor.from_pretrained(work / "model")
  pipeline = transformers.pipeline(
    "image-feature-extraction",
    model=model.eval(),
    image_processor=processor,
    pool=True,
    return_tensors=True,
    device=0 if torch.cuda.is_available() else -1,
  )

  def embed(files):
    paths = [str(work / "photos" / file) for file in files]
    results = pipeline(paths, batch_size=batch_size, num_workers=workers)
    rows = np.concatenate([row.cpu().numpy() for row in results])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)

  return embed


CONTESTANTS = {"ours": be_ours, "transformers": be_transformers}


def serve(name: str, work: str, batch_size: str, workers: str) -> None:
  """Embeds once for each line that comes in."""
  folder = pathlib.Path(work)
  say = os.fdopen(os.dup(1), "w")  # Libraries print what they like.
  os.dup2(2, 1)
  files = sorted(file.name for file in (folder / "photos").iterdir())
  embed = CONTESTANTS[name](folder, int(batch_size), int(workers))
  embed(files[: int(batch_size)])
  print("ready", file=say, flush=True)
  for _ in sys.stdin:
    start, used = time.perf_counter(), time.process_time()
    rows = embed(files)
    used = time.process_time() - used
    print(time.perf_counter() - start, used, file=say, flush=True)
    np.save(folder / f"{name}.npy", rows)


def measure(arguments: argparse.Namespace, work: pathlib.Path) -> dict:
  """Returns images a second of both and the median ratio of neighbours."""
  write_model(work / "model")
  if arguments.photos:
    photos = sorted(pathlib.Path(arguments.photos).resolve().glob("*.jp*g"))
    (work / "photos").mkdir()
    for photo in photos[: arguments.count]:
      (work / "photos" / photo.name).symlink_to(photo)
  else:
    write_photos(work / "photos", arguments.count)
  count = len(list((work / "photos").iterdir()))
  contestants = {
    name: Contestant(name, arguments, str(work)) for name in CONTESTANTS
  }
  for contestant in contestants.values():
    contestant.wait()
  speeds = {name: [] for name in contestants}
  used = {name: [] for name in contestants}
  for repetition in range(arguments.repetitions):
    for name in list(contestants)[:: 1 if repetition % 2 else -1]:
      seconds, processors = contestants[name].run()
      speeds[name].append(count / seconds)
      used[name].append(processors / count)
  for contestant in contestants.values():
    contestant.close()
  rows = [np.load(work / f"{name}.npy") for name in contestants]
  pairs = zip(*speeds.values(), strict=True)
  return {
    "photos": count,
    "batch_size": arguments.batch_size,
    "images_per_second": speeds,
    "median": {name: statistics.median(s) for name, s in speeds.items()},
    "processor_seconds_an_image": {n: min(u) for n, u in used.items()},
    "ratio": statistics.median(ours / theirs for ours, theirs in pairs),
    "lowest_cosine": float((rows[0] * rows[1]).sum(1).min()),
  }


def main() -> None:
  """Prints a table, or JSON."""
  if sys.argv[1:2] == ["--be"]:
    serve(*sys.argv[2:])
    return
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--photos", help="a folder of JPEGs; made unless given")
  parser.add_argument("--count", type=int, default=256)
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--repetitions", type=int, default=5)
  parser.add_argument(
    "--workers", type=int, default=0, help="processes of transformers' loader"
  )
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as work:
    result = measure(arguments, pathlib.Path(work))
  if arguments.json:
    print(json.dumps(result))
    return
  batch = f"batches of {result['batch_size']}"
  print(f"B/16, {result['photos']} photos, {batch}, images a second:")
  print(f"{'':14}{'median':>8}{'fastest':>9}{'processor s an image':>22}")
  for name, speeds in result["images_per_second"].items():
    used = result["processor_seconds_an_image"][name]
    median = result["median"][name]
    print(f"{name:14}{median:8.2f}{max(speeds):9.2f}{used:22.3f}")
  print(f"ours / transformers: {result['ratio']:.3f}")
  print(f"lowest cosine between the two: {result['lowest_cosine']:.6f}")


if __name__ == "__main__":
  main()
