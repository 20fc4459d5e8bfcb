"""A term as somebody else would add it: one file, and one line to name it.

A student's head guesses what a slow teacher makes of the whole image from half
of its patches. It has parameters, random masks, a teacher and a centre, so
everything that a term may have.
"""

import jax
import jax.numpy as jnp

from big_siglip.objectives import Carried, Term

WIDTH = 5


def make(weight=None, name="toy"):
  return Term(
    name,
    each=_each,
    weight=weight,
    init=_init,
    carried=Carried(_carry, _advance),
  )


def _init(key, part):
  width = part.seen.image_tokens.shape[-1]
  return {"kernel": 0.1 * jax.random.normal(key, (width, WIDTH))}


def _carry(params):
  teacher = {"image": params["image"], "kernel": params["toy"]["kernel"]}
  return {"teacher": teacher, "centre": jnp.zeros(WIDTH)}


def _each(part):
  tokens, kernel = part.seen.image_tokens, part.params["toy"]["kernel"]
  hide = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, tokens.shape[1:2]))
  visible = hide(part.keys)[..., None]
  student = (tokens * visible).mean(axis=1) @ kernel
  teacher = part.carry["teacher"]
  whole = part.look({**part.params, "image": teacher["image"]}, part.batch)
  wanted = whole.image_tokens.mean(axis=1) @ teacher["kernel"]
  target = jax.nn.softmax(3 * (wanted - part.carry["centre"][None]))
  loss = -(target * jax.nn.log_softmax(student)).sum(axis=-1)
  return loss, {"wanted": wanted, "visible": visible.mean(axis=(1, 2))}


def _advance(carry, params, means):
  now = {"image": params["image"], "kernel": params["toy"]["kernel"]}
  teacher = jax.tree.map(lambda t, p: 0.9 * t + 0.1 * p, carry["teacher"], now)
  return {
    "teacher": teacher,
    "centre": 0.9 * carry["centre"] + 0.1 * means["wanted"],
  }
