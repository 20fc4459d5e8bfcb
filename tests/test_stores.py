"""Data on S3 and GCS, read by their own clients from servers that speak alike.

Skipped where s3fs, gcsfs and the servers (moto, gcp-storage-emulator) are not
installed: `make test-stores` has them.
"""

import contextlib
import os
import pathlib
import subprocess
import sys
import time
import urllib.error
import urllib.request

from absl import flags
import format_cases
import fsspec
import numpy as np
import pytest
import runs
import test_formats

from big_siglip.data import pipeline, sources
from big_siglip.data.sources import Options
from big_siglip.data.text import make_tokenizer
from big_siglip.data.views import Pixels, Tokens
from big_siglip.errors import UserError

# gcsfs would ask what kind of bucket it is, over TLS; it reads this at import.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
_WHY = "these clients and servers have an environment of their own"
pytest.importorskip("s3fs", reason=_WHY)
pytest.importorskip("gcsfs", reason=_WHY)

BIN = pathlib.Path(sys.executable).parent
LABELS = [label for label in test_formats.LABELS if label != "tsv"]
BUCKET = "photos"


@pytest.fixture(scope="module")
def images():
  return format_cases.photos()


@pytest.fixture(scope="module")
def formats(tmp_path_factory, images):
  return test_formats.write_all(tmp_path_factory.mktemp("formats"), images)


@contextlib.contextmanager
def _running(url, command, log):
  """Runs a server until it is no more needed; it answers from the start."""
  with open(log, "w") as file:
    server = subprocess.Popen(command, stdout=file, stderr=file)
  try:
    for _ in range(200):
      assert server.poll() is None, pathlib.Path(log).read_text()
      try:
        urllib.request.urlopen(url, timeout=5).close()
        break
      except urllib.error.HTTPError:
        break  # An answer, too.
      except OSError:
        time.sleep(0.1)
    else:
      pytest.fail(f"{command}: no answer")
    yield
  finally:
    server.kill()
    server.wait()


@pytest.fixture(scope="module", params=["s3", "gs"])
def bucket(request, formats, tmp_path_factory):
  """Yields the address of a bucket that holds all formats by their label."""
  port, folder = runs.free_port(), tmp_path_factory.mktemp("server")
  url = f"http://127.0.0.1:{port}"
  if request.param == "s3":
    command = [BIN / "moto_server", f"--port={port}"]
    settings = {
      "AWS_ENDPOINT_URL": url,
      "AWS_ACCESS_KEY_ID": "anyone",
      "AWS_SECRET_ACCESS_KEY": "anything",
      "AWS_DEFAULT_REGION": "us-east-1",
    }
  else:
    command = [BIN / "gcp-storage-emulator", "start", "--host=127.0.0.1"]
    command += [f"--port={port}", "--in-memory", f"--default-bucket={BUCKET}"]
    settings = {"STORAGE_EMULATOR_HOST": url}
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("BIG_SIGLIP_DATA", str(tmp_path_factory.mktemp("cache")))
    for name, value in settings.items():
      patch.setenv(name, value)
    with _running(url, command, folder / "log"):
      fs = fsspec.filesystem(request.param)
      if request.param == "s3":
        fs.mkdir(BUCKET)
      for label in LABELS:
        root, _ = _split(formats[label][2])
        fs.put(f"{root}/", f"{BUCKET}/{_name(label)}/", recursive=True)
      yield f"{request.param}://{BUCKET}"


def _name(label: str) -> str:
  return label.replace(" ", "-")


def _split(path: str) -> tuple[str, str]:
  """Returns a folder, and the pattern of files in it, with its slash."""
  root = path.split("/*")[0].split("/{")[0]
  return root, path[len(root) :]


def _open(bucket, formats, label, **options):
  name, split, path = formats[label]
  path = f"{bucket}/{_name(label)}{_split(path)[1]}"
  if label == "arrayrecord":
    options |= dict(text_keys=("captions/text",), image_key="photo")
  return sources.open_source(name, split, path, Options(**options))


@pytest.mark.parametrize("label", LABELS)
def test_every_format_is_read(bucket, formats, images, label):
  test_formats.assert_same(_open(bucket, formats, label), images)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("label", ["csv", "tar", "parquet", "tfds"])
def test_batches_are_those_of_local_files(bucket, formats, label, num_workers):
  flags.FLAGS.mark_as_parsed()  # grain hands them to its workers.
  views = Pixels(32), Tokens(make_tokenizer("bytes"), 16)
  how = dict(batch_size=8, seed=1, num_threads=4)
  remote = _open(bucket, formats, label)
  local = sources.open_source(*formats[label])
  with (
    contextlib.closing(
      pipeline.train_batches(remote, views, num_workers=num_workers, **how)
    ) as found,
    contextlib.closing(pipeline.train_batches(local, views, **how)) as expected,
  ):
    for _ in range(5):
      batch, same = next(found), next(expected)
      for name in ("image", "text", "index", "faults"):
        np.testing.assert_array_equal(batch[name], same[name])


def test_what_is_not_there_is_told_in_a_line(bucket):
  with pytest.raises(UserError, match=r"nothing/\*\.tar.*no such files"):
    sources.open_source("tar", "all", f"{bucket}/nothing/*.tar")
