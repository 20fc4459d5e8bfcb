"""The model equals transformers' SiglipModel, in values and in gradients."""

import jax
from model_cases import model_config
import numpy as np
from peers import torch, transformers
import pytest

from big_siglip.losses import sigmoid_loss
from big_siglip.models import SigLIP

pytestmark = pytest.mark.torch

PIXELS, LENGTH, VOCAB, BATCH = 48, 8, 50, 4

# Widths and head sizes: those of B (64), So400m (72, a hidden width that is no
# multiple of the width, pixels that no patch covers) and g-opt (96, a text
# tower of another width).
CASES = {
  "B": (
    dict(size="B/16", depth=2, width=256, mlp_dim=1024, num_heads=4),
    dict(size="B", depth=2, width=256, mlp_dim=1024, num_heads=4),
  ),
  "So400m": (
    dict(size="So400m/14", depth=2, width=144, mlp_dim=538, num_heads=2),
    dict(size="So400m", depth=2, width=144, mlp_dim=538, num_heads=2),
  ),
  "g-opt": (
    dict(size="g-opt/16", depth=2, width=192, mlp_dim=768, num_heads=2),
    dict(size="So400m", depth=2, width=144, mlp_dim=538, num_heads=2),
  ),
}


def make_config(name):
  image, text = CASES[name]
  return model_config(
    dict(image, image_size=PIXELS, drop_border=True),
    dict(text, vocab_size=VOCAB, length=LENGTH),
  )


def make_reference(config):
  def tower(section):
    return dict(
      hidden_size=section.width,
      num_hidden_layers=section.depth,
      intermediate_size=section.mlp_dim,
      num_attention_heads=section.num_heads,
    )

  patch_size = int(config.image.size.partition("/")[2])
  model = transformers.SiglipModel(
    transformers.SiglipConfig(
      vision_config=dict(
        tower(config.image), image_size=PIXELS, patch_size=patch_size
      ),
      text_config=dict(
        tower(config.text),
        vocab_size=VOCAB,
        max_position_embeddings=LENGTH,
        projection_size=config.image.width,
        pad_token_id=1,
        bos_token_id=None,
        eos_token_id=None,
      ),
      attn_implementation="eager",
    )
  ).eval()
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():  # No bias stays hidden at 0.
      noise = torch.randn(parameter.shape, generator=generator)
      parameter += 0.05 * noise
    model.logit_scale.fill_(np.log(10))
    model.logit_bias.fill_(-4)
  return model


def make_inputs():
  rng = np.random.default_rng(0)
  image = rng.uniform(-1, 1, (BATCH, PIXELS, PIXELS, 3)).astype(np.float32)
  return image, rng.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)


def convert_linear(tensors, name):
  tensors = {part: tensors[f"{name}.{part}"] for part in ("weight", "bias")}
  return dict(kernel=tensors["weight"].T, bias=tensors["bias"])


def convert_norm(tensors, name):
  return dict(scale=tensors[f"{name}.weight"], bias=tensors[f"{name}.bias"])


def convert_attention(tensors, num_heads, *projections):
  """From four (name of ours, [D, D] weight, [D] bias)."""
  converted = {}
  for name, weight, bias in projections:
    width = len(bias)
    heads = (num_heads, width // num_heads)
    if name == "out":
      kernel = weight.T.reshape(*heads, width)
    else:
      kernel, bias = weight.T.reshape(width, *heads), bias.reshape(heads)
    converted[name] = dict(kernel=kernel, bias=bias)
  return converted


def convert_encoder(tensors, tower, final_norm, section):
  def block(index):
    layer = f"{tower}.encoder.layers.{index}"
    projections = dict(query="q", key="k", value="v", out="out")
    return dict(
      attention_norm=convert_norm(tensors, f"{layer}.layer_norm1"),
      attention=convert_attention(
        tensors,
        section.num_heads,
        *(
          (name, tensors[f"{theirs}.weight"], tensors[f"{theirs}.bias"])
          for name, letter in projections.items()
          for theirs in [f"{layer}.self_attn.{letter}_proj"]
        ),
      ),
      mlp_norm=convert_norm(tensors, f"{layer}.layer_norm2"),
      mlp=convert_mlp(tensors, f"{layer}.mlp"),
    )

  blocks = [block(index) for index in range(section.depth)]
  return dict(
    blocks=jax.tree.map(lambda *x: np.stack(x), *blocks),
    norm=convert_norm(tensors, f"{tower}.{final_norm}"),
  )


def convert_mlp(tensors, name):
  return dict(
    up=convert_linear(tensors, f"{name}.fc1"),
    down=convert_linear(tensors, f"{name}.fc2"),
  )


def convert_pool(tensors, name, num_heads):
  inputs = zip(
    ("query", "key", "value"),
    np.split(tensors[f"{name}.attention.in_proj_weight"], 3),
    np.split(tensors[f"{name}.attention.in_proj_bias"], 3),
    strict=True,
  )
  out = (
    tensors[f"{name}.attention.out_proj.weight"],
    tensors[f"{name}.attention.out_proj.bias"],
  )
  return dict(
    probe=tensors[f"{name}.probe"],
    attention=convert_attention(tensors, num_heads, *inputs, ("out", *out)),
    norm=convert_norm(tensors, f"{name}.layernorm"),
    mlp=convert_mlp(tensors, f"{name}.mlp"),
  )


def convert(tensors, config):
  """Their parameters, or gradients of them, in our tree."""
  tensors = {name: x.numpy() for name, x in tensors.items()}
  patch = "vision_model.embeddings.patch_embedding"
  return dict(
    image=dict(
      patch_embedding=dict(
        kernel=tensors[f"{patch}.weight"].transpose(2, 3, 1, 0),
        bias=tensors[f"{patch}.bias"],
      ),
      position_embedding=tensors[
        "vision_model.embeddings.position_embedding.weight"
      ],
      encoder=convert_encoder(
        tensors, "vision_model", "post_layernorm", config.image
      ),
      pool=convert_pool(tensors, "vision_model.head", config.image.num_heads),
    ),
    text=dict(
      token_embedding=dict(
        embedding=tensors["text_model.embeddings.token_embedding.weight"]
      ),
      position_embedding=tensors[
        "text_model.embeddings.position_embedding.weight"
      ],
      encoder=convert_encoder(
        tensors, "text_model", "final_layer_norm", config.text
      ),
      head=convert_linear(tensors, "text_model.head"),
    ),
    logit_scale=tensors["logit_scale"][0],
    logit_bias=tensors["logit_bias"][0],
  )


def run_reference(model, image, text):
  output = model(
    input_ids=torch.tensor(text, dtype=torch.long),
    pixel_values=torch.tensor(image.transpose(0, 3, 1, 2)),
    return_loss=True,
  )
  output.loss.backward()
  return output


@pytest.mark.parametrize(
  "name",
  [
    # Half a minute, and new to "So400m" is but the text tower's width.
    pytest.param(name, marks=pytest.mark.slow) if name == "g-opt" else name
    for name in CASES
  ],
)
def test_model_and_gradients_equal_those_of_transformers(name):
  config = make_config(name)
  reference = make_reference(config)
  image, text = make_inputs()
  output = run_reference(reference, image, text)
  model = SigLIP(config)

  @jax.jit
  def run(params, image, text):
    def loss_fn(params):
      outputs = model.apply({"params": params}, image, text)
      return sigmoid_loss(*outputs), outputs

    return jax.value_and_grad(loss_fn, has_aux=True)(params)

  params = convert(dict(reference.state_dict()), config)
  (loss, ours), gradients = run(params, image, text)
  logits = np.exp(ours[2]) * ours[0] @ ours[1].T + ours[3]
  for actual, expected in [
    (ours[0], output.image_embeds),
    (ours[1], output.text_embeds),
    (logits, output.logits_per_image),
    (loss, output.loss),
  ]:
    np.testing.assert_allclose(actual, expected.detach(), atol=1e-5)

  parameters = dict(reference.named_parameters())
  expected = convert({name: p.grad for name, p in parameters.items()}, config)
  assert jax.tree.structure(gradients) == jax.tree.structure(expected)
  largest = max(np.linalg.norm(x) for x in jax.tree.leaves(expected))
  actual = jax.tree_util.tree_leaves_with_path(gradients)
  for (path, a), e in zip(actual, jax.tree.leaves(expected), strict=True):
    error, norm = np.linalg.norm(a - e), np.linalg.norm(e)
    # The gradient of a key's bias is 0: a softmax sees no common shift.
    assert error <= 1e-4 * norm + 1e-7 * largest, jax.tree_util.keystr(path)
