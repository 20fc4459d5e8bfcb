"""Images a second of big-siglip embed --patches against big-siglip embed.

python -m benchmarks.patches [--size=S] [--kind=last] [--photos=FOLDER]

Both embed the same files with the same tower (224 pixels, patches of 16, random
weights) on this machine, from the list of files to the shards on disk: one
vector of an image in float32, or 196 of its patches in float16. They take turns
in one process, each after the other first as often as before; the result is the
median of the ratios of neighbours, so that a machine whose speed drifts slows
both. The processors' time that each took is given as well: other programs
hardly change it. Loading and compiling are not counted.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

from benchmarks.embed import write_model, write_photos


class Contestant:
  """Embeds all photos into a new folder each time it is asked to."""

  def __init__(self, model: Any, described: dict, dtype: str, work: Any):
    """Compiles nothing yet.

    Args:
      model: whose embeddings of images are written.
      described: of it, for the folder.
      dtype: of what is written.
      work: a namespace of `photos`, `batch_size`, `threads`.
    """
    self._model, self._described = model, described
    self._dtype, self._work = dtype, work

  def run(self, files: list[str]) -> tuple[float, float, int]:
    """Returns seconds, those of all processors, and bytes that were written."""
    from big_siglip import embeddings
    from big_siglip.embeddings import description as descriptions
    from big_siglip.embeddings.pipeline import embed_missing

    work = self._work
    inputs = embeddings.Inputs(work.photos, files)
    description = descriptions.describe(
      inputs, self._described, self._dtype, work.shard
    )
    with tempfile.TemporaryDirectory(dir=work.photos.parent) as folder:
      writer = embeddings.Writer(pathlib.Path(folder), description)
      start, used = time.perf_counter(), time.process_time()
      embed_missing(
        writer,
        self._model,
        inputs,
        {number: description.shard(number) for number in writer.missing},
        batch_size=work.batch_size,
        num_threads=work.threads,
        progress=lambda count: None,
      )
      seconds = time.perf_counter() - start
      used = time.process_time() - used
      writer.close()
      shards = pathlib.Path(folder).glob("shard-*")
      written = sum(file.stat().st_size for file in shards)
    return seconds, used, written


def contestants(arguments: argparse.Namespace, work: Any) -> dict:
  """Returns both, of one model."""
  import big_siglip
  from big_siglip import embeddings, platforms
  from big_siglip.embeddings import description as descriptions
  from big_siglip.models.patches import Patches

  write_model(work.photos.parent / "model", arguments.size)
  platforms.prepare()
  path = str(work.photos.parent / "model")
  model = big_siglip.load(path)
  asked = Patches(arguments.kind)
  look = model.look(asked)
  return {
    "embed": Contestant(
      model, embeddings.describe_model(model, path), "float32", work
    ),
    f"embed --patches={arguments.kind}": Contestant(
      look.of(model),
      descriptions.describe_patches(model, path, asked, look),
      "float16",
      work,
    ),
  }


def measure(arguments: argparse.Namespace, folder: pathlib.Path) -> dict:
  """Returns images a second of both and the median ratio of neighbours."""
  photos = folder / "photos"
  if arguments.photos:
    found = sorted(pathlib.Path(arguments.photos).resolve().glob("*.jp*g"))
    photos.mkdir()
    for photo in found[: arguments.count]:
      (photos / photo.name).symlink_to(photo)
  else:
    write_photos(photos, arguments.count)
  files = sorted(file.name for file in photos.iterdir())
  work = argparse.Namespace(
    photos=photos,
    batch_size=arguments.batch_size,
    threads=os.cpu_count() or 1,
    shard=arguments.shard_size,
  )
  both = contestants(arguments, work)
  for contestant in both.values():
    contestant.run(files[: arguments.batch_size])
  speeds = {name: [] for name in both}
  used = {name: [] for name in both}
  written = {}
  for repetition in range(arguments.repetitions):
    for name in list(both)[:: 1 if repetition % 2 else -1]:
      seconds, processors, size = both[name].run(files)
      speeds[name].append(len(files) / seconds)
      used[name].append(processors / len(files))
      written[name] = size
  embed, patches = speeds.values()
  pairs = zip(patches, embed, strict=True)
  least = [min(seconds) for seconds in used.values()]
  return {
    "photos": len(files),
    "images_per_second": speeds,
    "processor_seconds_an_image": used,
    "megabytes": {name: size / 1e6 for name, size in written.items()},
    "ratio": statistics.median(mine / other for mine, other in pairs),
    "ratio_of_processor_time": least[0] / least[1],
  }


def main() -> None:
  """Prints a table, or JSON."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--photos", help="a folder of JPEGs; made unless given")
  parser.add_argument("--size", default="S", help="of the towers: Ti, S, B ...")
  parser.add_argument("--kind", default="last", help="of the patches")
  parser.add_argument("--count", type=int, default=256)
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--shard_size", type=int, default=128)
  parser.add_argument("--repetitions", type=int, default=5)
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as work:
    result = measure(arguments, pathlib.Path(work))
  if arguments.json:
    print(json.dumps(result))
    return
  print(f"{arguments.size}/16, {result['photos']} photos, images a second:")
  print(
    f"{'':24}{'median':>8}{'fastest':>9}{'processor s an image':>22}{'MB':>8}"
  )
  for name, speeds in result["images_per_second"].items():
    used = min(result["processor_seconds_an_image"][name])
    median = statistics.median(speeds)
    size = result["megabytes"][name]
    print(f"{name:24}{median:8.2f}{max(speeds):9.2f}{used:22.4f}{size:8.1f}")
  print(f"with --patches / without: {result['ratio']:.3f}")
  print(f"by processor time: {result['ratio_of_processor_time']:.3f}")


if __name__ == "__main__":
  main()
