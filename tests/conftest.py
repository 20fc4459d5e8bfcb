"""Eight simulated CPU devices stand for a mesh in every test."""

import gc
import os

# Programs that tests start as subprocesses choose their own device count.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# This suite is mostly compilation, and its arrays are small. XLA's newer code
# generator for fused operations takes twice the time of the older one, and a
# program in parts for several threads a fifth more than in one.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
  "--xla_llvm_disable_expensive_passes=true "
  "--xla_cpu_parallel_codegen_split_count=1",
)
# Where in the code each operation stands is for readers of HLO alone.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# A user's Python keeps what it prints until a pipe's buffer is full.
os.environ.pop("PYTHONUNBUFFERED", None)
# Nothing goes to the user's own cache, nor comes from there.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

import compiled
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
# Tracing makes millions of objects, few of them garbage.
gc.set_threshold(200_000, 50, 1_000)
compiled.share()
compiled.slice_on_host()
# A silent (n,) + (n, n) broadcast is how losses go wrong unseen.
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
  """Puts what loads PyTorch first: one worker gets that half, in order.

  Others steal from the end alone (--dist worksteal).
  """
  items.sort(key=lambda item: item.get_closest_marker("torch") is None)


def pytest_sessionfinish():
  """Lets a worker end without looking for garbage among all it has made."""
  gc.freeze()


@pytest.fixture(scope="session")
def short_run(tmp_path_factory):
  """The folder of a finished run of six steps; copy it to change it."""
  import programs

  folder = tmp_path_factory.mktemp("short") / "run"
  status, output = programs.train(folder, total_steps=6, evals__test__every=3)
  assert status == 0, output
  return folder


@pytest.fixture
def shared_data():
  """The folder of real photos beside the checkout, where there is one."""
  import pathlib

  folder = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
  if not folder.is_dir():
    pytest.skip(f"no real photos beside the checkout ({folder.name})")
  return folder
