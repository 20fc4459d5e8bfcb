"""Small model configs and inputs that the tests of models share."""

from etils import epath
import jax
from ml_collections import config_dict, ConfigDict
import numpy as np

from big_siglip.data.preprocessing import Preprocessing
from big_siglip.trained import saved

# `config.data` of a model that reads the captions of scenes.
SCENES = dict(
  resize="bilinear",
  tokenizer="configs/scenes.model",
  lowercase=True,
  pad_id=1,
)


def model_config(image=None, text=None, **fields):
  """A config.model of two tiny towers, with the given fields replaced."""
  none = config_dict.placeholder
  numbers = ("width", "depth", "mlp_dim", "num_heads")
  config = ConfigDict(
    dict(
      image=dict(
        size="mu/8",
        image_size=16,
        pooling="map",
        head=False,
        drop_border=False,
        max_patches=none(int),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        patch_size=none(int),
        **{name: none(int) for name in numbers},
      ),
      text=dict(
        size="mu",
        vocab_size=50,
        length=6,
        pooling="last",
        head=True,
        **{name: none(int) for name in numbers},
      ),
      embed_dim=none(int),
      dtype="float32",
      attention="auto",
      remat="none",
      keep_blocks=0,
      scan=True,
      slice_tokens=none(int),
      lora=dict(rank=0, alpha=8.0, targets=".*/attention/.*/kernel"),
      logit_scale_init=10.0,
      logit_bias_init=-10.0,
    )
  )
  config.image.update(image or {})
  config.text.update(text or {})
  config.update(fields)
  return config


def example_inputs(config, batch=3, seed=0):
  """Random uint8 images and int32 tokens of the config's shapes."""
  rng = np.random.default_rng(seed)
  pixels = config.image.image_size
  shape = (batch, pixels, pixels, 3)
  image = rng.integers(0, 256, shape).astype(np.uint8)
  shape = (batch, config.text.length)
  text = rng.integers(0, config.text.vocab_size, shape).astype(np.int32)
  return image, text


def save_model(folder, params, model, data):
  """Writes a model's folder; `data` is a dict of `config.data`."""
  made = Preprocessing.of(ConfigDict({"model": model, "data": data}))
  saved.save_model(epath.Path(folder), params, model, made)


def abstract_params(model):
  """The parameters' shapes and dtypes; computes nothing."""
  config = model.config
  pixels = config.image.image_size
  image = jax.ShapeDtypeStruct((1, pixels, pixels, 3), np.uint8)
  text = jax.ShapeDtypeStruct((1, config.text.length), np.int32)
  return jax.eval_shape(model.init, jax.random.key(0), image, text)["params"]


def random_params(model, seed=0):
  """Parameters that are all different and not small: no bias hides at 0."""
  rng = np.random.default_rng(seed)

  def draw(path, x):
    values = 0.2 * rng.normal(size=x.shape)
    return np.float32(values + (getattr(path[-1], "key", "") == "scale"))

  params = jax.tree_util.tree_map_with_path(draw, abstract_params(model))
  params["logit_scale"], params["logit_bias"] = np.float32([2.3, -5.0])
  return params
