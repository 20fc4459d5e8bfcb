"""Sequences that a decoder writes, token by token, by greedy or beam search.

Keys and values of what is written are kept, in arrays of the whole length;
those of the image are computed once.

Shape letters: N images, b beams, L tokens, D width, H heads, h head size, K
image tokens, C their width, V vocabulary, d blocks.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from big_siglip.models.attention import attention
from big_siglip.models.decoder import START
from big_siglip.models.dense import Dense
from big_siglip.models.norm import layer_norm
from big_siglip.models.transformer import Mlp

_DTYPE = "float32"
_NEVER = -1e30  # A logarithm of a probability; finite, so that sums are.


class Written(NamedTuple):
  """The sequences of N images, the best first.

  Attributes:
    ids: NbL int32, with what was given and the end; zeros behind it.
    score: Nb float32, the logarithm of the probability of what was written.
    length: Nb int32, how many tokens were written, with the end.
  """

  ids: jax.Array
  score: jax.Array
  length: jax.Array


class _State(NamedTuple):
  """What the search knows before it writes at a place.

  Attributes:
    place: ().
    written: as it will be returned.
    done: Nb bool, whether a sequence has its end.
    keys: dNbLHh.
    values: dNbLHh.
  """

  place: jax.Array
  written: Written
  done: jax.Array
  keys: jax.Array
  values: jax.Array


def generate(
  params: Any,
  context: jax.Array,
  start: jax.Array,
  given: jax.Array,
  allowed: jax.Array,
  *,
  eos_id: int,
  beams: int = 1,
  max_length: int | None = None,
  length_penalty: float = 1.0,
  mask: jax.Array | None = None,
) -> Written:
  """Writes a sequence for each image; computed in float32.

  Args:
    params: of a `Decoder`, with stacked blocks.
    context: NKC, the image's tokens.
    start: NL int32, how each sequence begins; the rest is not looked at.
    given: N int32, how many of these tokens count.
    allowed: V bool, what may be written.
    eos_id: the end of a sequence.
    beams: b, sequences that are kept; 1: greedy.
    max_length: tokens that are written at most, with the end; None: up to L.
    length_penalty: a sequence's score is divided by its length to this power
      where the best is chosen at last; 0: its probability alone.
    mask: NK bool, true for real tokens of the image; None: all are.
  """
  count, length = start.shape
  decoder = _Decoder(params, context, mask)
  depth, _, heads, size = params["blocks"]["attention"]["key"]["kernel"].shape
  cache = jnp.zeros((depth, count, beams, length, heads, size))
  state = _State(
    place=jnp.zeros((), jnp.int32),
    written=Written(
      jnp.zeros((count, beams, length), jnp.int32),
      # All beams are alike before the first word: one may go on.
      jnp.where(jnp.arange(beams)[None] == 0, 0.0, _NEVER)
      + jnp.zeros((count, 1)),
      jnp.zeros((count, beams), jnp.int32),
    ),
    done=jnp.zeros((count, beams), bool),
    keys=cache,
    values=cache,
  )
  most = length if max_length is None else max_length
  advance = functools.partial(
    _advance, decoder, start, given, allowed, eos_id, most
  )
  state = jax.lax.while_loop(
    lambda state: (state.place < length) & ~state.done.all(), advance, state
  )
  found = state.written
  length = jnp.maximum(found.length, 1).astype(jnp.float32)
  order = jnp.argsort(-found.score / length**length_penalty, axis=1)
  return _of_beams(found, order)


def _advance(decoder, start, given, allowed, eos_id, most, state: _State):
  """Writes one more token of each sequence."""
  place, written = state.place, state.written
  previous = jax.lax.dynamic_index_in_dim(
    written.ids, jnp.maximum(place - 1, 0), axis=2, keepdims=False
  )
  previous = jnp.where(place == 0, START, previous)
  logits, keys, values = decoder(previous, place, state.keys, state.values)
  logits = jnp.where(allowed[None, None], logits, _NEVER)
  scores = jax.nn.log_softmax(logits)
  vocab = scores.shape[-1]
  ids = jnp.arange(vocab)[None, None]

  def only(choice, scores):
    """Returns scores with which one token alone can follow, at no cost."""
    return jnp.where(ids == choice[..., None], 0.0, _NEVER)

  is_given = (place < given)[:, None]
  forced = jax.lax.dynamic_index_in_dim(start, place, axis=1)
  scores = jnp.where(is_given[..., None], only(forced, scores), scores)
  scores = jnp.where(
    state.done[..., None], only(jnp.zeros_like(previous), scores), scores
  )
  beams = written.score.shape[1]
  total = (written.score[..., None] + scores).reshape(len(scores), -1)
  score, best = jax.lax.top_k(total, beams)
  parent, token = best // vocab, best % vocab
  kept = _of_beams(written, parent)
  was_done = jnp.take_along_axis(state.done, parent, axis=1)
  new = ~(was_done | is_given)
  length = kept.length + new
  chosen = kept.ids.at[:, :, place].set(token.astype(jnp.int32))
  keys, values = (
    jnp.take_along_axis(x, parent[None, :, :, None, None, None], axis=2)
    if beams > 1
    else x
    for x in (keys, values)
  )
  done = was_done | (new & ((token == eos_id) | (length >= most)))
  return _State(place + 1, Written(chosen, score, length), done, keys, values)


def _of_beams(written: Written, order: jax.Array) -> Written:
  """Returns the beams that Nb numbers name."""
  return Written(
    jnp.take_along_axis(written.ids, order[..., None], axis=1),
    jnp.take_along_axis(written.score, order, axis=1),
    jnp.take_along_axis(written.length, order, axis=1),
  )


class _Decoder:
  """A decoder at one place of its sequences."""

  def __init__(self, params: Any, context: jax.Array, mask: jax.Array | None):
    """Computes keys and values of the image, dNKHh."""
    self._params, self._mask = params, mask
    cross = params["blocks"]["cross_attention"]
    self._key, self._value = (
      jax.vmap(lambda p: _project(p, context))(cross[name])
      for name in ("key", "value")
    )

  def __call__(self, tokens, place, keys, values):
    """Returns logits of what follows, NbV, and keys and values with it.

    Args:
      tokens: Nb int32, at the place before.
      place: () of what follows.
      keys: dNbLHh.
      values: dNbLHh.
    """
    params = self._params
    x = params["token_embedding"]["embedding"][tokens]
    x = x + params["position_embedding"][place][None, None]
    blocks = params["blocks"], keys, values, self._key, self._value

    def apply(x, block):
      return _block(block, x, place, self._mask)

    x, (keys, values) = jax.lax.scan(apply, x, blocks)
    x = _norm(params["norm"], x)
    kernel = params["logits"].get("kernel")
    if kernel is None:
      kernel = params["token_embedding"]["embedding"].T
    return x @ kernel + params["logits"]["bias"][None, None], keys, values


def _block(block, x, place, mask):
  """Applies a block to NbD; returns it with its keys and values, NbLHh."""
  params, keys, values, image_key, image_value = block
  own = params["attention"]
  y = _norm(params["attention_norm"], x)
  query, key, value = (_project(own[n], y) for n in ("query", "key", "value"))
  keys, values = (
    jax.lax.dynamic_update_index_in_dim(kept, new, place, axis=2)
    for kept, new in ((keys, key), (values, value))
  )
  rows = x.shape[0] * x.shape[1]
  past = (a.reshape(rows, *a.shape[2:]) for a in (keys, values))
  seen = jnp.arange(keys.shape[2])[None] <= place
  y = attention(
    query.reshape(rows, 1, *query.shape[2:]),
    *past,
    backend="xla",
    mask=jnp.broadcast_to(seen, (rows, keys.shape[2])),
  ).reshape(query.shape)
  x = x + _join(own["out"], y)
  cross = params["cross_attention"]
  query = _project(cross["query"], _norm(params["cross_attention_norm"], x))
  y = attention(query, image_key, image_value, backend="xla", mask=mask)
  x = x + _join(cross["out"], y)
  mlp = Mlp(params["mlp"]["up"]["kernel"].shape[-1], _DTYPE)
  y = _norm(params["mlp_norm"], x)
  return x + mlp.apply({"params": params["mlp"]}, y), (keys, values)


def _project(params: Any, x: jax.Array) -> jax.Array:
  """Returns heads of tokens; ..D -> ..Hh."""
  width, *heads = params["kernel"].shape
  return Dense((width,), tuple(heads), _DTYPE).apply({"params": params}, x)


def _join(params: Any, x: jax.Array) -> jax.Array:
  """Returns tokens of heads; ..Hh -> ..D."""
  *heads, width = params["kernel"].shape
  return Dense(tuple(heads), (width,), _DTYPE).apply({"params": params}, x)


def _norm(params: Any, x: jax.Array) -> jax.Array:
  return layer_norm(_DTYPE, name="norm").apply({"params": params}, x)
