"""The same work as open_clip does it: webdataset, Pillow, PyTorch workers.

The pipeline is that of `get_wds_dataset` in open_clip_train/data.py, with
open_clip's own transform and tokenizer.
"""

import glob
import os
import sys

import open_clip
from rate import rate
import webdataset as wds

SIZE, BATCH = 224, 128


def main(folder: str, seconds: float) -> None:
  """Prints what `rate` returns."""
  transform = open_clip.image_transform(SIZE, is_train=False)
  tokenize = open_clip.get_tokenizer("ViT-B-32")
  shards = sorted(glob.glob(os.path.join(folder, "*.tar")))
  dataset = wds.DataPipeline(
    wds.ResampledShards(shards),
    wds.tarfile_to_samples(),
    wds.shuffle(1_000, initial=100),
    wds.decode("pilrgb"),
    wds.rename(image="jpg;png;jpeg;webp", text="txt"),
    wds.map_dict(image=transform, text=lambda text: tokenize(text)[0]),
    wds.to_tuple("image", "text"),
    wds.batched(BATCH, partial=False),
  )
  loader = wds.WebLoader(
    dataset,
    batch_size=None,
    shuffle=False,
    num_workers=len(os.sched_getaffinity(0)),
    persistent_workers=True,
  )
  batches = iter(loader)
  print(*rate(batches, BATCH, seconds))


if __name__ == "__main__":
  main(sys.argv[1], float(sys.argv[3]))
