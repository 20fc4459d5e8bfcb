"""The towers have the published shapes and do what the config says."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
from model_cases import (
  abstract_params,
  example_inputs,
  model_config,
  random_params,
)
import numpy as np
import pytest
from reference import CHECKPOINTS, I18N, TOWER_SHAPES

from big_siglip.losses import sigmoid_loss
from big_siglip.models import SigLIP
from big_siglip.schema import sizes, words


@pytest.mark.parametrize("image,pixels,text,vocab,length,expected", CHECKPOINTS)
def test_parameter_count_is_the_published_one(
  image, pixels, text, vocab, length, expected
):
  # The multilingual So400m is the one model without a text head; 384 pixels
  # are 27 patches of 14 and a border that no patch covers.
  config = model_config(
    dict(size=image, image_size=pixels, drop_border=pixels % 14 > 0),
    dict(
      size=text,
      vocab_size=vocab,
      length=length,
      head=(text, vocab) != ("So400m", I18N),
    ),
  )
  params = abstract_params(SigLIP(config))
  assert sum(x.size for x in jax.tree.leaves(params)) == expected
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name,width,depth,mlp_dim,num_heads", TOWER_SHAPES)
def test_named_sizes_have_the_published_shapes(
  name, width, depth, mlp_dim, num_heads
):
  # A count of parameters does not see the number of heads.
  config = model_config(dict(size=f"{name}/14"), dict(size=name))
  text = sizes.resolve_text(config.text)
  assert text == sizes.TowerSize(width, depth, mlp_dim, num_heads)
  image = sizes.resolve_image(config.image)
  assert image == sizes.TowerSize(width, depth, mlp_dim, num_heads, 14)


def test_border_is_dropped_at_27_patches_a_side():
  config = model_config(
    dict(size="mu/14", image_size=384, drop_border=True), scan=False
  )
  params = abstract_params(SigLIP(config))
  assert params["image"]["position_embedding"].shape == (729, 32)


def test_parameter_names_are_stable():
  paths = flax.traverse_util.flatten_dict(
    abstract_params(SigLIP(model_config(dict(pooling="cls", head=True)))),
    sep="/",
  )
  dense = [
    f"{name}/{part}"
    for name in [
      *(f"attention/{x}" for x in ("query", "key", "value", "out")),
      *("mlp/up", "mlp/down"),
    ]
    for part in ("kernel", "bias")
  ]
  norms = [
    f"{name}/{part}"
    for name in ("attention_norm", "mlp_norm")
    for part in ("scale", "bias")
  ]
  expected = {"logit_scale", "logit_bias"}
  for tower in ("image", "text"):
    expected |= {f"{tower}/encoder/blocks/{x}" for x in dense + norms}
    expected |= {f"{tower}/encoder/norm/{x}" for x in ("scale", "bias")}
    expected.add(f"{tower}/position_embedding")
  expected |= {f"image/patch_embedding/{x}" for x in ("kernel", "bias")}
  expected |= {"image/class_token", "image/head/kernel"}
  expected |= {"text/token_embedding/embedding"}
  expected |= {"text/head/kernel", "text/head/bias"}
  assert set(paths) == expected
  assert paths["image/position_embedding"].shape == (5, 32)
  assert paths["image/class_token"].shape == (32,)
  kernel = "image/encoder/blocks/attention/query/kernel"
  assert paths[kernel].shape == (1, 32, 2, 16)


def test_initialization_is_that_of_big_vision():
  config = model_config(
    dict(width=64), dict(pooling="map", vocab_size=300, length=40)
  )
  model = SigLIP(config)
  inputs = example_inputs(config, batch=1)
  params = jax.jit(model.init)(jax.random.key(0), *inputs)["params"]

  def xavier(inputs, outputs):
    return (2 / (inputs + outputs)) ** 0.5

  image, text = params["image"], params["text"]
  blocks = image["encoder"]["blocks"]
  for values, deviation in [
    (image["patch_embedding"]["kernel"], (8 * 8 * 3) ** -0.5),
    (image["position_embedding"], 64**-0.5),
    (image["pool"]["probe"], xavier(1, 64)),
    (blocks["attention"]["query"]["kernel"], xavier(64, 64)),
    (blocks["attention"]["out"]["kernel"], xavier(64, 64)),
    (blocks["mlp"]["up"]["kernel"], xavier(64, 128)),
    (blocks["mlp"]["down"]["kernel"], xavier(128, 64)),
    (blocks["mlp"]["up"]["bias"], 1e-6),
    (text["token_embedding"]["embedding"], 32**-0.5),
    (text["position_embedding"], 32**-0.5),
    (text["head"]["kernel"], 32**-0.5),
  ]:
    error = 5 / (2 * values.size) ** 0.5  # Five standard errors.
    np.testing.assert_allclose(np.std(values), deviation, rtol=error)
  # A normal of the same deviation would reach twice as far.
  for kernel, bound in [
    (blocks["attention"]["query"]["kernel"], (6 / (2 * 64)) ** 0.5),
    (blocks["mlp"]["up"]["kernel"], (6 / (64 + 128)) ** 0.5),
  ]:
    assert 0.99 * bound < np.abs(kernel).max() <= bound
  for zero in (
    image["patch_embedding"],
    text["head"],
    image["encoder"]["norm"],
  ):
    assert not zero["bias"].any()
  assert not blocks["attention"]["query"]["bias"].any()
  np.testing.assert_allclose(params["logit_scale"], np.log(10), rtol=1e-6)
  assert params["logit_bias"] == -10


@pytest.mark.parametrize(
  "pooling,tokens_read",
  [("last", {5}), ("mean", set(range(6))), ("map", set(range(6))), ("cls", ())],
)
def test_text_pooling_reads_its_tokens(pooling, tokens_read):
  config = model_config(text=dict(pooling=pooling))
  model = SigLIP(config)
  params = random_params(model)
  # Without attention between tokens, pooling alone decides what is read.
  out = params["text"]["encoder"]["blocks"]["attention"]["out"]
  out["kernel"] = np.zeros_like(out["kernel"])
  apply = jax.jit(lambda text: model.apply({"params": params}, None, text)[1])
  text = np.arange(6, dtype=np.int32)[None]
  changed = np.repeat(text, 6, axis=0) + 10 * np.eye(6, dtype=np.int32)
  moved = np.abs(apply(changed) - apply(text)).max(axis=1)
  assert set(np.flatnonzero(moved > 1e-4)) == set(tokens_read)


@pytest.mark.parametrize("pooling", ["map", "cls", "gap"])
def test_image_pooling_and_head_give_embed_dim(pooling):
  config = model_config(dict(pooling=pooling, head=True), embed_dim=20)
  model = SigLIP(config)
  params = random_params(model)
  image, text = example_inputs(config)
  apply = jax.jit(model.apply)
  embeddings = apply({"params": params}, image, text)
  assert [x.shape for x in embeddings] == [(3, 20), (3, 20), (), ()]
  # Without attention between patches, the class token alone sees no patch.
  out = params["image"]["encoder"]["blocks"]["attention"]["out"]
  out["kernel"] = np.zeros_like(out["kernel"])
  blind, *_ = apply({"params": params}, image, text)
  assert (np.ptp(blind, axis=0).max() < 1e-6) == (pooling == "cls")


@pytest.mark.parametrize(
  "tower,pooling,tokens,pool",
  [
    ("image", "gap", 4, lambda x: x.mean(axis=1)),
    ("image", "cls", 5, lambda x: x[:, 0]),
    ("text", "mean", 6, lambda x: x.mean(axis=1)),
    ("text", "cls", 7, lambda x: x[:, 0]),
    ("text", "last", 6, lambda x: x[:, -1]),
  ],
)
def test_embedding_is_the_pooled_encoder_output(tower, pooling, tokens, pool):
  config = model_config(text=dict(head=False))
  config[tower].pooling = pooling
  model = SigLIP(config)
  run = functools.partial(
    model.apply, capture_intermediates=lambda m, _: m.name == "encoder"
  )
  inputs = example_inputs(config)
  embeddings, state = jax.jit(run)({"params": random_params(model)}, *inputs)
  (output,) = state["intermediates"][tower]["encoder"]["__call__"]
  assert output.shape == (3, tokens, 32)
  expected = pool(output)
  expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
  embedding = embeddings[("image", "text").index(tower)]
  np.testing.assert_allclose(embedding, expected, atol=1e-6)


@pytest.mark.slow
def test_remat_leaves_the_gradients_of_the_loss():
  def gradients(remat):
    model = SigLIP(model_config(text=dict(depth=2), remat=remat))
    params = random_params(model)
    _, text = example_inputs(model.config)

    def loss(tower):  # One tower: the other's blocks are the same.
      outputs = model.apply({"params": {**params, "text": tower}}, None, text)
      return sigmoid_loss(jnp.eye(3, 32), *outputs[1:])

    return jax.jit(jax.grad(loss))(params["text"])

  first, *others = (gradients(remat) for remat in words.REMATS)
  largest = max(np.linalg.norm(x) for x in jax.tree.leaves(first))

  def check(actual, expected):
    # The gradient of a key's bias is 0: a softmax sees no common shift.
    allowed = 1e-6 * np.linalg.norm(expected) + 1e-7 * largest
    assert np.linalg.norm(actual - expected) <= allowed

  for other in others:
    jax.tree.map(check, other, first)


def test_bfloat16_computes_low_and_keeps_parameters_and_embeddings_float32():
  config = model_config(dtype="bfloat16")
  model = SigLIP(config)
  params = random_params(model)
  inputs = example_inputs(config)
  apply = jax.jit(model.apply)
  image, text, *_ = apply({"params": params}, *inputs)
  for x in (image, text):
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, rtol=1e-6)
  assert {x.dtype for x in jax.tree.leaves(abstract_params(model))} == {
    jnp.dtype("float32")
  }
  exact = jax.jit(SigLIP(model_config()).apply)({"params": params}, *inputs)
  error = max(np.abs(image - exact[0]).max(), np.abs(text - exact[1]).max())
  assert 1e-5 < error < 0.05  # Rounded, but close.
  dots = [
    line
    for line in apply.lower({"params": params}, *inputs).as_text().splitlines()
    if "dot_general" in line or "stablehlo.convolution" in line
  ]
  assert dots
  assert all("(tensor<" in d and "bf16>, tensor<" in d for d in dots), dots


def test_either_input_may_be_missing():
  config = model_config()
  model = SigLIP(config)
  params = {"params": random_params(model)}
  image, text = example_inputs(config)
  apply = jax.jit(model.apply)
  both = apply(params, image, text)
  only_image, only_text = apply(params, image, None), apply(params, None, text)
  assert only_image[1] is None
  assert only_text[0] is None
  np.testing.assert_allclose(only_image[0], both[0], atol=1e-6)
  np.testing.assert_allclose(only_text[1], both[1], atol=1e-6)


def test_uint8_pixels_mean_minus_one_to_one():
  config = model_config()
  model = SigLIP(config)
  params = {"params": random_params(model)}
  image, _ = example_inputs(config)
  apply = jax.jit(lambda image: model.apply(params, image, None)[0])
  np.testing.assert_allclose(
    apply(image), apply(np.float32(image) / 127.5 - 1), atol=1e-6
  )


def test_model_does_not_follow_later_changes_of_its_config():
  config = model_config()
  model = SigLIP(config)
  config.embed_dim = 20
  assert model == SigLIP(model_config())
  assert hash(model) == hash(SigLIP(model_config()))


@pytest.mark.parametrize("pooling", ["map", "cls", "none"])
def test_tokens_are_seen_before_they_are_pooled(pooling):
  config = model_config(dict(pooling=pooling))
  model = SigLIP(config)
  image, text = example_inputs(config)
  if pooling == "none":
    whole = random_params(SigLIP(model_config()))
    own = random_params(model)
    assert whole["image"].keys() - own["image"].keys() == {"pool"}
  params = random_params(model)
  seen = jax.jit(model.look)(params, {"image": image, "text": text})
  run = functools.partial(
    model.apply, capture_intermediates=lambda m, _: m.name == "encoder"
  )
  embeddings, state = jax.jit(run)({"params": params}, image, text)
  for tower, tokens in (
    ("image", seen.image_tokens),
    ("text", seen.text_tokens),
  ):
    (output,) = state["intermediates"][tower]["encoder"]["__call__"]
    if pooling == "cls" and tower == "image":
      output = output[:, 1:]
    np.testing.assert_allclose(tokens, output, rtol=1e-5, atol=1e-6)
  if pooling == "none":
    assert seen.image is None and embeddings[0] is None
  else:
    np.testing.assert_allclose(seen.image, embeddings[0], atol=1e-6)
  np.testing.assert_allclose(seen.text, embeddings[1], atol=1e-6)


def test_tokens_that_nobody_uses_cost_nothing():
  config = model_config(dict(pooling="none"))
  model = SigLIP(config)
  image, text = example_inputs(config)
  batch, params = {"image": image, "text": text}, random_params(model)

  def flops(function, *arguments):
    compiled = jax.jit(function).lower(*arguments).compile()
    return compiled.cost_analysis()["flops"]

  both = flops(lambda p, b: model.look(p, b).text, params, batch)
  alone = flops(lambda p, b: model.look(p, b).text, params, {"text": text})
  assert both == alone
