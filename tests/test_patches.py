"""Features of patches; transformers is the judge, and the tower's own pool."""

import json

import jax
import jax.numpy as jnp
import model_cases
import numpy as np
from peers import torch, transformers
from PIL import Image
import programs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import big_siglip
from big_siglip.errors import UserError
from big_siglip.evaluators import slices
from big_siglip.models import make_model, restack
from big_siglip.models.compute import Compute
from big_siglip.models.norm import layer_norm
from big_siglip.models.patches import make_look, Patches
from big_siglip.models.pooling import AttentionPool
from big_siglip.models.resampling import resample_positions
from big_siglip.models.resolution import Resolution
from big_siglip.models.transformer import Mlp

pytestmark = pytest.mark.torch

DEPTH, SIZE, PATCH = 3, 56, 14
VISION = dict(
  hidden_size=32,
  intermediate_size=64,
  num_hidden_layers=DEPTH,
  num_attention_heads=2,
  image_size=SIZE,
  patch_size=PATCH,
)


def _images(size=SIZE, count=2):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (count, size, size, 3), np.uint8)


def _pixels(images):
  return torch.tensor(images.transpose(0, 3, 1, 2) / 127.5 - 1).float()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
  """A tower of transformers with random weights, and where it lies."""
  folder = tmp_path_factory.mktemp("tower")
  torch.manual_seed(0)
  tower = transformers.SiglipVisionModel(
    transformers.SiglipVisionConfig(**VISION)
  ).eval()
  with torch.no_grad():
    for parameter in tower.parameters():  # Zeros would hide what is mixed up.
      parameter.add_(0.1 * torch.randn_like(parameter))
  tower.save_pretrained(folder)
  return tower, str(folder)


@pytest.fixture(scope="module")
def model(reference):
  return big_siglip.load(reference[1])


@pytest.fixture(scope="module")
def hidden(reference):
  """All hidden states, the last after the final norm, and the weights."""
  with torch.no_grad():
    found = reference[0](
      pixel_values=_pixels(_images()), output_hidden_states=True
    )
  return found


def _rows(patches):
  return patches.reshape(len(patches), -1, patches.shape[-1])


def _unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _close(actual, expected, atol=1e-5):
  np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def test_layers_equal_transformers_hidden_states(model, hidden):
  images = _images()
  grid = model.embed_patches(images)
  assert grid.shape == (2, SIZE // PATCH, SIZE // PATCH, 32)
  assert grid.dtype == np.float32
  _close(_rows(grid), hidden.last_hidden_state)
  for layer in (1, 2, -1, -2):
    found = model.embed_patches(images, layer=layer, norm=False)
    _close(_rows(found), hidden.hidden_states[layer])


def test_a_fixed_grid_equals_transformers_siglip_2(model, reference):
  """SigLIP 2 at a fixed resolution is SigLIP's tower, and its files say siglip.

  transformers' class Siglip2 is for NaFlex; on the grid that it was trained on
  it must be the same tower, if it is given the same weights.
  """
  vision = {k: v for k, v in VISION.items() if k != "image_size"}
  side = SIZE // PATCH
  config = transformers.Siglip2VisionConfig(**vision, num_patches=side**2)
  naflex = transformers.Siglip2VisionModel(config).eval()
  weights = dict(reference[0].state_dict())
  (name,) = (n for n in weights if n.endswith("patch_embedding.weight"))
  kernel = weights[name]  # Of a convolution; there of rows of pixels.
  weights[name] = kernel.permute(0, 2, 3, 1).reshape(len(kernel), -1)
  own = naflex.state_dict()
  assert own.keys() <= weights.keys() and all(
    own[key].shape == weights[key].shape for key in own
  )
  naflex.load_state_dict({key: weights[key] for key in own})
  images = _images()
  pixels = _pixels(images).permute(0, 2, 3, 1)
  rows = pixels.reshape(2, side, PATCH, side, PATCH, 3).permute(
    0, 1, 3, 2, 4, 5
  )
  with torch.no_grad():
    found = naflex(
      pixel_values=rows.reshape(2, side**2, -1),
      pixel_attention_mask=torch.ones(2, side**2, dtype=torch.int64),
      spatial_shapes=torch.tensor([[side, side]] * 2),
      output_hidden_states=True,
    )
  _close(_rows(model.embed_patches(images)), found.last_hidden_state)
  before = model.embed_patches(images, layer=-2, norm=False)
  _close(_rows(before), found.hidden_states[-2])


def test_text_is_the_pool_of_transformers_on_each_patch(
  model, reference, hidden
):
  tower = reference[0]
  head = getattr(tower, "vision_model", tower).head
  tokens = hidden.last_hidden_state
  with torch.no_grad():
    alone = head(tokens.reshape(-1, 1, 32)).reshape(tokens.shape)
  _close(
    _rows(model.embed_patches(_images(), kind="text")), _unit(alone.numpy())
  )


def test_attention_and_value_equal_transformers(model, reference, hidden):
  tower = reference[0]
  own = getattr(tower, "vision_model", tower)
  head, block = own.head, own.encoder.layers[-1]
  tokens = hidden.last_hidden_state
  with torch.no_grad():
    probe = head.probe.repeat(len(tokens), 1, 1)
    _, weights = head.attention(
      probe, tokens, tokens, need_weights=True, average_attn_weights=False
    )
    x = block.layer_norm1(hidden.hidden_states[-2])
    x = block.self_attn.out_proj(block.self_attn.v_proj(x))
    x = own.post_layernorm(x)
    value = head(x.reshape(-1, 1, 32)).reshape(x.shape)
  images = _images()
  found = _rows(model.embed_patches(images, kind="attention"))
  _close(found, weights[:, :, 0].numpy().transpose(0, 2, 1))
  found = _rows(model.embed_patches(images, kind="value"))
  _close(found, _unit(value.numpy()))


@pytest.mark.parametrize("pooling", ["map", "gap"])
def test_shares_add_up_to_what_the_tower_pools(pooling):
  config, params, image = _tower(pooling)
  seen = make_model(config).look(params, {"image": image})

  def find(kind):
    return make_look(config, Patches(kind))(params, image)

  pooled = find("share").sum(axis=1)
  alone = seen.image_tokens
  if pooling == "map":
    pool = params["image"]["pool"]
    y = layer_norm("float32", "n").apply({"params": pool["norm"]}, pooled)
    pooled += Mlp(128, "float32").apply({"params": pool["mlp"]}, y)
    _close(find("attention").sum(axis=1), 1.0, 1e-6)
    module = AttentionPool(2, 128, Compute())
    alone = module.apply({"params": pool}, alone.reshape(-1, 1, 32))
    alone = alone.reshape(seen.image_tokens.shape)
  head = params["image"]["head"]["kernel"]
  _close(_unit(pooled @ head), seen.image, 1e-6)
  _close(find("text"), _unit(alone @ head), 1e-6)


def _tower(pooling, scan=True):
  config = model_cases.model_config(
    image=dict(depth=DEPTH, pooling=pooling, head=True), scan=scan
  )
  params = model_cases.random_params(make_model(config))
  return config, params, model_cases.example_inputs(config)[0]


def test_blocks_of_a_class_token_equal_a_plain_vit():
  config, params, image = _tower("cls")
  vit = transformers.ViTModel(
    transformers.ViTConfig(
      hidden_size=32,
      intermediate_size=128,
      num_hidden_layers=DEPTH,
      num_attention_heads=2,
      image_size=16,
      patch_size=8,
      hidden_act="gelu_pytorch_tanh",
      layer_norm_eps=1e-6,
    ),
    add_pooling_layer=False,
  ).eval()
  _fill(vit, jax.device_get(params["image"]))
  with torch.no_grad():
    found = vit(pixel_values=_pixels(image), output_hidden_states=True)
    block = vit.layers[-1]
    value = block.layernorm_before(found.hidden_states[-2])
    value = block.attention.o_proj(block.attention.v_proj(value))
    value = vit.layernorm(value)[:, 1:].numpy()
  for layer in (1, -2, -1):
    own = make_look(config, Patches(layer=layer, norm=False))(params, image)
    _close(own, found.hidden_states[layer][:, 1:])
  _close(
    make_look(config, Patches())(params, image), found.last_hidden_state[:, 1:]
  )
  expected = _unit(value @ np.asarray(params["image"]["head"]["kernel"]))
  _close(make_look(config, Patches("value"))(params, image), expected)


def _fill(vit, tower):
  """Gives a ViT of transformers the parameters of a tower of ours."""
  blocks = tower["encoder"]["blocks"]
  arrays = {
    "embeddings.cls_token": tower["class_token"].reshape(1, 1, -1),
    "embeddings.position_embeddings": tower["position_embedding"][None],
    "embeddings.patch_embeddings.projection.weight": tower["patch_embedding"][
      "kernel"
    ].transpose(3, 2, 0, 1),
    "embeddings.patch_embeddings.projection.bias": tower["patch_embedding"][
      "bias"
    ],
    "layernorm.weight": tower["encoder"]["norm"]["scale"],
    "layernorm.bias": tower["encoder"]["norm"]["bias"],
  }
  for i in range(DEPTH):
    for theirs, ours in (
      ("layernorm_before", "attention_norm"),
      ("layernorm_after", "mlp_norm"),
    ):
      arrays[f"layers.{i}.{theirs}.weight"] = blocks[ours]["scale"][i]
      arrays[f"layers.{i}.{theirs}.bias"] = blocks[ours]["bias"][i]
    for theirs, (part, name) in (
      ("attention.q_proj", ("attention", "query")),
      ("attention.k_proj", ("attention", "key")),
      ("attention.v_proj", ("attention", "value")),
      ("attention.o_proj", ("attention", "out")),
      ("mlp.fc1", ("mlp", "up")),
      ("mlp.fc2", ("mlp", "down")),
    ):
      kernel, bias = (blocks[part][name][n][i] for n in ("kernel", "bias"))
      width = len(vit.layernorm.weight)
      if name == "down":
        kernel = kernel.reshape(-1, width)
      elif name == "out":
        kernel = kernel.reshape(width, width)
      else:
        kernel = kernel.reshape(width, -1)
      arrays[f"layers.{i}.{theirs}.weight"] = kernel.T
      arrays[f"layers.{i}.{theirs}.bias"] = bias.reshape(-1)
  state = {name: torch.tensor(np.array(a)) for name, a in arrays.items()}
  vit.load_state_dict(state)


def test_another_resolution_equals_transformers_interpolation(model, reference):
  images = _images(84)
  with torch.no_grad():
    found = reference[0](
      pixel_values=_pixels(images), interpolate_pos_encoding=True
    )
  look = model.look(Patches(), Resolution(84, positions="huggingface"))
  grids = np.stack([*look(images, 2)])
  assert grids.shape == (2, 6, 6, 32)
  _close(_rows(grids), found.last_hidden_state)


def test_windows_are_what_the_model_sees_of_each(model):
  images = _images(84, 3)
  # Without overlap but at the end: a window of 4 patches, then one of 2 more.
  found = model.embed_patches(images, size=84, stride=56, batch_size=5)
  parts = {
    (top, left): model.embed_patches(
      images[:, top : top + 56, left : left + 56]
    )
    for top in (0, 28)
    for left in (0, 28)
  }
  total, seen = np.zeros((3, 6, 6, 32)), np.zeros((6, 6, 1))
  for (top, left), part in parts.items():
    place = slice(top // 14, top // 14 + 4), slice(left // 14, left // 14 + 4)
    total[(slice(None), *place)] += part
    seen[place] += 1
  _close(found, total / seen)
  unit = model.embed_patches(images, kind="text", size=84, stride=28)
  _close(np.linalg.norm(unit, axis=-1), 1.0)
  whole = model.embed_patches(images[:, :56, :56], stride=14)
  _close(whole, model.embed_patches(images[:, :56, :56]))


def test_slices_of_a_cpu_give_the_same_patches(model, reference, monkeypatch):
  images = _images(count=5)
  whole = model.embed_patches(images, kind="text")
  monkeypatch.setattr(slices, "_CACHED_TOKENS", 2 * (SIZE // PATCH) ** 2)
  one = big_siglip.load(reference[1], device=jax.local_devices()[:1])
  found = one.embed_patches(images, kind="text")  # In slices of 2, 2 and 1.
  _close(found, whole, 1e-6)


def test_a_class_tokens_position_stays_at_another_resolution():
  positions = np.arange(10 * 4, dtype=np.float32).reshape(10, 4)
  found = resample_positions(positions, 6, "big_vision", class_token=True)
  np.testing.assert_array_equal(found[0], positions[0])
  np.testing.assert_array_equal(
    found[1:], resample_positions(positions[1:], 6, "big_vision")
  )


def test_stacked_blocks_give_the_same():
  stacked, params, image = _tower("map")
  single = _tower("map", scan=False)[0]
  for patches in (Patches("value"), Patches("value", 1), Patches("text", 2)):
    _close(
      make_look(stacked, patches)(params, image),
      make_look(single, patches)(restack(params, False), image),
      1e-6,
    )


@pytest.mark.parametrize(
  ("wished", "said"),
  [
    (dict(kind="best"), "kind='best': must be one of last, text, value, share"),
    (dict(layer=0), "layer=0: must be 1 ... 3, or -3 ... -1: the tower has 3"),
    (dict(layer=4), "layer=4: must be 1 ... 3"),
    (dict(layer=1.5), "layer=1.5: must be 1 ... 3"),
    (dict(kind="text", norm=False), "norm=False: is for kind=last"),
    (dict(size=50), "size=50: must be 56, as the model was trained, or a mult"),
    (dict(size=0), "size=0: must be 56"),
    (dict(size=70, stride=10), "stride=10: must be a multiple of the patches"),
    (dict(size=70, stride=70), "stride=70: must be a multiple"),
    (dict(size=28, stride=14), "size=28: must be at least 56 for windows"),
  ],
)
def test_mistakes_are_told_before_an_image_is_read(model, wished, said):
  with pytest.raises(UserError) as error:
    model.embed_patches(["nowhere.png"], **wished)
  assert str(error.value).startswith(said)
  assert len(str(error.value).splitlines()) == 1


def test_what_memory_does_not_hold_is_refused(model):
  many = ["nowhere.png"] * 1_000_000
  with pytest.raises(UserError) as error:
    model.embed_patches(many, size=14 * 100)
  assert "1000000 images, [100, 100, 32] float32 each, need 2560.0 GB" in str(
    error.value
  )


@pytest.mark.parametrize("stride", [None, 14])
def test_an_image_that_no_memory_holds_is_refused(model, stride):
  asked = dict(size=14 * 100_000, stride=stride)
  with pytest.raises(UserError) as error:
    model.embed_patches(["nowhere.png"], **asked)
  said = str(error.value)
  assert said.startswith(
    "size=1400000: an image of 10,000,000,000 patches take"
  )
  assert "GiB of memory at the least, and a device has" in said


@pytest.mark.parametrize(
  ("pooling", "allowed"), [("cls", "last, value"), ("none", "last for")]
)
def test_a_tower_without_an_attention_pool_says_what_it_has(pooling, allowed):
  config = model_cases.model_config(image=dict(pooling=pooling))
  with pytest.raises(UserError, match=f"must be one of {allowed}"):
    make_look(config, Patches("text"))


def test_jit_computes_no_block_after_the_last_that_is_asked_for():
  config, params, image = _tower("map", scan=False)
  flops = []
  for layer in (1, 2, 3):
    look = jax.jit(make_look(config, Patches(layer=layer, norm=False)))
    lowered = look.lower(params, jnp.asarray(image))
    flops.append(lowered.compile().cost_analysis()["flops"])
  assert flops[0] < flops[1] < flops[2]


def test_embed_writes_patches_as_parquet(reference, tmp_path):
  images = _images(80, 3)
  (tmp_path / "photos").mkdir()
  for number, image in enumerate(images):
    Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")
  flags = (
    f"--checkpoint={reference[1]}",
    f"--images={tmp_path / 'photos'}",
    f"--output={tmp_path / 'out'}",
  )
  more = "--patches=value", "--size=84"
  assert programs.call("tools/embed.py", *flags, *more)[0] == 0
  rows = pq.read_table(tmp_path / "out")
  said = json.loads((tmp_path / "out" / "_embedding.json").read_text())
  assert said["patches"] == {
    "kind": "value", "layer": -1, "size": 84, "grid": [6, 6], "width": 32
  }  # fmt: skip
  assert rows.schema.field("embedding").type.value_type == pa.float16()
  found = np.stack(rows["embedding"].to_numpy()).reshape(3, 6, 6, 32)
  model = big_siglip.load(reference[1])
  files = [tmp_path / "photos" / key for key in rows["key"].to_pylist()]
  expected = model.embed_patches(files, kind="value", size=84)
  _close(found, expected, 1e-3)
  said = programs.said_in_one_line(
    "tools/search.py", f"--embeddings={tmp_path / 'out'}", "--query=a"
  )
  assert "holds patches of images, must hold embeddings of whole" in said
  for more, expected in (
    (["--patches=best"], "--patches='best': must be one of last, text"),
    (["--patches=last", "--size=50"], "--size=50: must be 56"),
    (["--size=84"], "--size and --layer: go with --patches"),
    (["--patches=last"], "patches"),  # Not what the folder was made of.
  ):
    said = programs.said_in_one_line("tools/embed.py", *flags, *more)
    assert expected in said


@pytest.mark.parametrize("way", ["pca", "segment", "match", "attention"])
def test_the_command_draws(reference, tmp_path, way):
  files = [tmp_path / f"{number}.png" for number in range(2)]
  for file, image in zip(files, _images(90), strict=True):
    Image.fromarray(image).save(file)
  flags = [f"--checkpoint={reference[1]}", f"--output={tmp_path / 'a.png'}"]
  flags += ["--labels=a dog,grass"] * (way == "segment")
  status, output, said = programs.call("tools/dense.py", way, *flags, *files)
  if way == "segment":
    assert status == 2 and "is an image tower alone" in said
    return
  assert (status, output) == (0, f"{tmp_path / 'a.png'}\n"), said
  drawn = np.asarray(Image.open(tmp_path / "a.png"))
  assert drawn.shape[0] >= 320 and drawn.std() > 10
