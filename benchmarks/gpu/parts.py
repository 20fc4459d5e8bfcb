"""What is measured, one process for each: in this order, while time is left."""

from collections.abc import Collection, Iterator
import dataclasses

# The share of a GPU's memory that JAX takes, 0.75 unless it is told another: by
# one of these, since with both it refuses to start. The second is the older.
FRACTION, FRACTION_NAMES = (
  "0.92",
  (
    "XLA_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
  ),
)
# Sets of XLA_FLAGS, to find out what they are worth on this GPU: docs/gpu.md
# says what each does.
FLAGS = (
  "--xla_gpu_enable_triton_gemm=false",
  "--xla_gpu_triton_gemm_any=true",
  "--xla_gpu_enable_command_buffer=",
  "--xla_gpu_enable_latency_hiding_scheduler=true",
  "--xla_gpu_autotune_level=0",
)
# Changes of our step, {field: value} of a config.
VARIANTS = (
  {"model.attention": "xla"},
  {"model.attention": "cudnn"},
  {"model.scan": "False"},
  {"model.scan": "False", "model.remat": "attention"},
  {"model.scan": "False", "model.remat": "none"},
)
NAMES = ("b16", "so400m")  # Configs of the models whose steps are timed.
PARTS = (
  *("chip", "steps", "attention", "ring", "devices", "variants", "flags"),
)


@dataclasses.dataclass(frozen=True)
class Run:
  """One process.

  Attributes:
    part: one of `PARTS`.
    module: of benchmarks.gpu.
    arguments: of its command line.
    seconds: after which it is ended.
    environment: of its own, on top.
    model: one of `NAMES`, whose step it times; "": none's.
    who: the column of its row; "": what it says itself.
  """

  part: str
  module: str
  arguments: tuple[str, ...] = ()
  seconds: float = 100.0
  environment: tuple[tuple[str, str], ...] = ()
  model: str = ""
  who: str = ""


def runs(wanted: Collection[str]) -> Iterator[Run]:
  """Yields those of some of the `PARTS`, what matters most first."""
  return (run for run in _all() if run.part in wanted)


def _all() -> Iterator[Run]:
  yield Run("chip", "chip", seconds=60.0)
  for name in NAMES:
    yield _step(name, "ours", seconds=130.0)
    yield _step(name, "plain", seconds=110.0)
    yield Run("steps", "torch_step", (f"--model={name}",), 60.0, model=name)
  yield Run("attention", "attention", seconds=70.0)
  yield Run("ring", "ring", seconds=60.0)
  for name in NAMES:
    yield _step(name, "ours", "--all_devices", part="devices")
  # Not before the rest: it takes long to compile.
  compiled = ("--model=b16", "--compile")
  yield Run("steps", "torch_step", compiled, 90.0, model="b16")
  for changes in VARIANTS:
    pairs = [f"{field}={value}" for field, value in changes.items()]
    yield _step(
      "b16",
      "ours",
      *(f"--set={pair}" for pair in pairs),
      part="variants",
      who=" ".join(pair.removeprefix("model.") for pair in pairs),
    )
  for flags in FLAGS:
    yield _step(
      "b16",
      "ours",
      part="flags",
      environment=(("XLA_FLAGS", flags),),
      who=flags.removeprefix("--xla_gpu_"),
    )


def _step(name, whose, *more, part="steps", seconds=90.0, **rest) -> Run:
  arguments = (f"--who={whose}", f"--model={name}", *more)
  return Run(part, "steps", arguments, seconds, model=name, **rest)
