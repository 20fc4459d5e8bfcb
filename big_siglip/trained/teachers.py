"""The teacher that a run carries, in its student's place.

Self-distillation (`objectives.distillation`) keeps a moving average of the
image tower. Like `config.ema` it may be the better model; it has no texts of
its own and takes the student's.
"""

from collections.abc import Callable
from typing import Any

from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from big_siglip.checkpoint import read_item
from big_siglip.errors import UserError

WEIGHTS = ("trained", "teacher")  # Values of the flag --weights.


def choose(
  weights: str,
  checkpoint: epath.Path,
  config: ConfigDict,
  load: Callable[[Mesh], Any],
) -> Callable[[Mesh], Any]:
  """Returns the function that loads the parameters that are asked for.

  Args:
    weights: one of `WEIGHTS`.
    checkpoint: what `saved.open_model` found.
    config: its config.
    load: mesh -> its parameters.

  Raises:
    UserError: there is no teacher.
  """
  if weights == "trained":
    return load
  terms = config.get("terms", {}).items()
  names = [name for name, spec in terms if spec["kind"] == "distillation"]
  if not names or not (checkpoint / "carry").is_dir():
    raise UserError(
      f"--weights=teacher: {checkpoint} has none: it is no checkpoint of a run "
      "with a term of kind distillation"
    )

  def load_teacher(mesh: Mesh) -> Any:
    carried = read_item(checkpoint / "carry", mesh)
    teacher = carried[names[0]]["teacher"]
    return {name: teacher.get(name, tree) for name, tree in load(mesh).items()}

  return load_teacher
