"""Towers as programs of their own (StableHLO), for serving without our code.

A bundle is a folder: `image.stablehlo` and `text.stablehlo` (`jax.export`, for
CPU, GPU and TPU, of any batch size), `params.safetensors` (their first
argument, by name), `serving.json` (preprocessing and the logits' scale and
bias) and the tokenizer.

Shape letters: B batch, H and W pixels, L tokens, E embedding width.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from big_siglip.data.batch import stack
from big_siglip.data.preprocessing import Preprocess, Preprocessing
from big_siglip.errors import UserError
from big_siglip.models import SigLIP
from big_siglip.run import workdir
from big_siglip.sharding import path_string
from big_siglip.weights import sidecar
from big_siglip.weights.export import make_folder
from big_siglip.weights.tensors import Safetensors, save_safetensors

_PLATFORMS = ("cpu", "cuda", "tpu")


def save(folder: pathlib.Path, params: Any, config: ConfigDict) -> None:
  """Writes a bundle.

  Args:
    folder: to be made.
    params: of a plain `SigLIP`.
    config: `model` and `data`.

  Raises:
    UserError: the folder cannot be made.
  """
  settings = ConfigDict(config.model.to_dict())
  settings.attention = "xla"  # What every platform has.
  model = SigLIP(settings)
  size, length = config.model.image.image_size, config.model.text.length
  leaves = {
    path_string(key): leaf
    for key, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  make_folder(folder)
  for tower, tail, dtype in (
    ("image", (size, size, 3), np.uint8),
    ("text", (length,), np.int32),
  ):
    own = {k: v for k, v in leaves.items() if k.startswith(f"{tower}/")}
    exported = jax.export.export(
      jax.jit(_embedder(model, tower)), platforms=_PLATFORMS
    )(
      {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in own.items()},
      jax.ShapeDtypeStruct(
        (jax.export.symbolic_shape("batch")[0], *tail), dtype
      ),
    )
    (folder / f"{tower}.stablehlo").write_bytes(exported.serialize())
  towers = {k: v for k, v in leaves.items() if "/" in k}
  save_safetensors(
    folder / "params.safetensors",
    [(k, v.shape, lambda v=v: np.asarray(v)) for k, v in towers.items()],
    {},
  )
  workdir.keep_tokenizer(epath.Path(folder), config.data.tokenizer)
  tokenizer = workdir.find_tokenizer(epath.Path(folder)) or "bytes"
  settings = {
    **sidecar.describe(config, pathlib.Path(tokenizer).name),
    "logit_scale": float(jnp.exp(leaves["logit_scale"])),
    "logit_bias": float(leaves["logit_bias"]),
  }
  text = json.dumps(settings, indent=2) + "\n"
  (folder / "serving.json").write_text(text)


@dataclasses.dataclass(frozen=True)
class Bundle:
  """A loaded bundle.

  Attributes:
    settings: serving.json.
    preprocess: what comes before the towers.
    image: (parameters, uint8 BHW3) -> BE, compiled when first called.
    text: (parameters, int32 BL) -> BE, as well.
    params: of both, by path.
  """

  settings: dict[str, Any]
  preprocess: Preprocess
  image: Any
  text: Any
  params: dict[str, jax.Array]

  def embed_images(self, images: Sequence[bytes]) -> np.ndarray:
    """Returns BE float32 of length 1, from encoded images.

    Raises:
      BadImage: one of them cannot be decoded.
    """
    rows = stack([self.preprocess.image(image) for image in images])
    return np.asarray(self.image(self._of("image"), rows))

  def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
    """Returns BE float32 of length 1."""
    tokens = self.preprocess.texts(texts)
    return np.asarray(self.text(self._of("text"), tokens))

  def _of(self, tower: str) -> dict[str, jax.Array]:
    return {k: v for k, v in self.params.items() if k.startswith(f"{tower}/")}


def load(path: str) -> Bundle:
  """Returns the bundle that `save` wrote.

  Raises:
    UserError: no bundle lies there, or it is damaged.
  """
  folder = pathlib.Path(path).expanduser()
  try:
    settings = json.loads((folder / "serving.json").read_text())
    programs = {
      tower: jax.export.deserialize(
        (folder / f"{tower}.stablehlo").read_bytes()
      )
      for tower in ("image", "text")
    }
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: holds no serving bundle ({error})") from error
  made = Preprocessing.from_dict(settings)
  if made.tokenizer not in (None, "bytes"):
    file = str(folder / made.tokenizer)
    made = dataclasses.replace(made, tokenizer=file)
  reader = Safetensors(folder / "params.safetensors")
  return Bundle(
    settings,
    Preprocess.of(made),
    jax.jit(programs["image"].call),
    jax.jit(programs["text"].call),
    {key: jnp.array(reader.read(key)) for key in reader.shapes()},
  )


def _embedder(model: SigLIP, tower: str):
  def embed(params: dict[str, jax.Array], rows: jax.Array) -> jax.Array:
    tree: dict[str, Any] = {
      "logit_scale": jnp.zeros(()),
      "logit_bias": jnp.zeros(()),
    }
    for path, leaf in params.items():
      *folders, name = path.split("/")
      place = tree
      for part in folders:
        place = place.setdefault(part, {})
      place[name] = leaf
    inputs = (rows, None) if tower == "image" else (None, rows)
    embeddings = model.apply({"params": tree}, *inputs)
    return embeddings[0 if tower == "image" else 1]

  return embed
