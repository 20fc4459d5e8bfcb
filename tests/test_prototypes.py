"""Cross-entropy over prototypes in chunks: plain torch says what it is."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from peers import torch
import pytest

from big_siglip.losses import (
  prototype_cross_entropy,
  Prototypes,
  summed_distribution,
)
from big_siglip.losses.prototypes import chunk_count

B, N, WIDTH, K = 4, 6, 8, 96
STUDENT, TEACHER = 0.1, 0.04


def _unit(x, axis):
  return (x / np.linalg.norm(x, axis=axis, keepdims=True)).astype(np.float32)


def _case(m, seed=0):
  rng = np.random.default_rng(seed)
  vectors = [_unit(rng.normal(size=(B, k, WIDTH)), -1) for k in (N, m)]
  matrices = [_unit(rng.normal(size=(WIDTH, K)), 0) for _ in range(2)]
  centre = (0.1 * rng.normal(size=K)).astype(np.float32)
  cotangent = rng.normal(size=(B, N)).astype(np.float32)
  return *vectors, *matrices, centre, cotangent


def _found(
  student,
  teacher,
  of_student,
  of_teacher,
  centre,
  chunk_size,
  temperature=TEACHER,
):
  return prototype_cross_entropy(
    student,
    teacher,
    Prototypes(of_student, jnp.zeros(K), jnp.float32(STUDENT)),
    Prototypes(of_teacher, centre, jnp.float32(temperature)),
    chunk_size=chunk_size,
  )


@pytest.mark.torch
@pytest.mark.parametrize("m", [1, N])
@pytest.mark.parametrize("chunk_size", [K, 40, 7])
# At the lower temperature exponentials of scores would not fit float32.
@pytest.mark.parametrize("temperature", [TEACHER, 0.008])
def test_it_is_the_plain_cross_entropy_and_its_gradient(
  m, chunk_size, temperature
):
  *inputs, cotangent = _case(m)
  student, teacher, of_student, of_teacher, centre = (
    torch.from_numpy(x).double() for x in inputs
  )
  for x in (student, of_student):
    x.requires_grad_()
  # As DINOLoss of facebookresearch/dino, main_dino.py.
  wanted = ((teacher @ of_teacher - centre) / temperature).softmax(-1)
  log = (student @ of_student / STUDENT).log_softmax(-1)
  loss = (-wanted * log).sum(-1)
  (loss * torch.from_numpy(cotangent)).sum().backward()

  found, backward = jax.vjp(
    lambda s, of: _found(
      s, inputs[1], of, *inputs[3:], chunk_size, temperature
    ),
    inputs[0],
    inputs[2],
  )
  # What a score is rounded by changes its exponential: the larger the more.
  relative = 1e-6 * TEACHER / temperature
  np.testing.assert_allclose(found.loss, loss.detach(), rtol=relative)
  entropy = -(wanted * wanted.log()).sum(-1)
  # A difference of numbers as large as the scores.
  rounding = 8 / temperature * np.finfo(np.float32).eps
  np.testing.assert_allclose(found.entropy, entropy, rtol=0, atol=rounding)
  gradients = backward(
    found._replace(
      loss=jnp.asarray(cotangent),
      entropy=jnp.zeros((B, m)),
      log_total=jnp.zeros((B, m)),
    )
  )
  for gradient, x in zip(gradients, (student, of_student), strict=True):
    largest = x.grad.abs().max().item()
    np.testing.assert_allclose(
      gradient, x.grad, rtol=0, atol=relative * largest
    )
  total = summed_distribution(
    inputs[1],
    found.log_total,
    Prototypes(inputs[3], centre.float().numpy(), jnp.float32(temperature)),
    chunk_size=chunk_size,
  )
  np.testing.assert_allclose(
    total, wanted.sum((0, 1)), rtol=10 * relative, atol=1e-7
  )


def test_nothing_of_the_teacher_gets_a_gradient():
  *inputs, _ = _case(1)

  def total(inputs):
    return _found(*inputs, 32).loss.sum()

  gradients = jax.grad(total)(inputs)
  still = [not np.any(gradient) for gradient in gradients]
  assert still == [False, True, False, True, True]


def test_scores_far_apart_stay_finite():
  """The largest comes last, in a chunk of its own."""
  student, teacher, of_student, of_teacher, centre, _ = _case(1)
  centre = np.where(np.arange(K) == K - 1, -40, 40).astype(np.float32)
  loss, backward = jax.vjp(
    lambda s: _found(s, teacher, of_student, of_teacher, centre, 12).loss,
    student,
  )
  log = jax.nn.log_softmax(student @ of_student / STUDENT)
  np.testing.assert_allclose(loss, -log[..., -1], rtol=1e-6)
  assert np.isfinite(backward(jnp.ones_like(loss))[0]).all()


def test_scores_of_all_prototypes_are_never_whole():
  *inputs, _ = _case(N)
  gradient = jax.grad(lambda s: _found(s, *inputs[1:], 8).loss.sum())
  text = jax.jit(gradient).lower(inputs[0]).compile().as_text()
  sizes = {
    int(np.prod([int(x) for x in shape.split(",")]))
    for shape in re.findall(r"f32\[([\d,]+)\]", text)
  }
  assert B * N * 8 in sizes and max(sizes) < B * N * K


def test_chunks_are_equal():
  assert chunk_count(65_536, 4096) == 16
  assert chunk_count(96, 40) == 3 and chunk_count(96, 96) == 1
  assert chunk_count(97, 40) == 97
