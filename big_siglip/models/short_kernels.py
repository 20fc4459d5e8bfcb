"""What the kernels of `short_attention` do with a block, forward and backward.

Shape letters: h head size, Q queries, K keys.
"""

import jax
import jax.numpy as jnp


def forward(*refs, arrays, places, size, keys_axis, segment):
  """Writes the heads at `places`, each hQ, or Qh where `keys_axis` is 1.

  Args:
    *refs: blocks of the `arrays` arrays that hold query, key and value; the
      last key that a query sees, 11Q, if that is told; the result.
    arrays: how many there are.
    places: of each head: where query, key and value are, (array, place), and
      the place of the result.
    size: h.
    keys_axis: of the logits: 0, KQ, or 1, QK.
    segment: tokens of the sequences in a row that do not see each other; None:
      a row is one.
  """
  *last, attended = refs[arrays:]
  for *parts, out in places:
    q, k, v = (refs[array][place] for array, place in parts)
    weights = _weights(q, k, size, keys_axis, segment, last)
    if keys_axis == 0:
      result = _product(v, weights, 1, 0)
    else:
      result = _product(weights, v, 1, 0)
    attended[out] = result.astype(attended.dtype)


def backward(*refs, arrays, places, size, keys_axis, segment):
  """Writes the gradients of the arrays; see `forward`."""
  *last, d_attended = refs[arrays:-arrays]
  gradients = refs[-arrays:]
  for *parts, out in places:
    q, k, v = (refs[array][place] for array, place in parts)
    d = d_attended[out]
    weights = _weights(q, k, size, keys_axis, segment, last)
    columns = keys_axis == 0
    d_weights = _product(v, d, 0, 0) if columns else _product(d, v, 1, 1)
    mean = (weights * d_weights).sum(axis=keys_axis, keepdims=True)
    d_logits = weights * (d_weights - mean) * size**-0.5
    if columns:
      results = (
        _product(k, d_logits, 1, 0),
        _product(q, d_logits, 1, 1),
        _product(d, weights, 1, 1),
      )
    else:
      results = (
        _product(d_logits, k, 1, 0),
        _product(d_logits, q, 0, 0),
        _product(weights, d, 0, 0),
      )
    for (array, place), result in zip(parts, results, strict=True):
      gradients[array][place] = result.astype(gradients[array].dtype)


def _weights(query, key, size, keys_axis, segment, last):
  """Returns the softmax over the keys in float32, KQ or QK."""
  if keys_axis == 0:
    logits = _product(key, query, 0, 0)
  else:
    logits = _product(query, key, 1, 1)
  logits *= size**-0.5
  if segment is not None:
    row, column = (
      jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) // segment
      for axis in (0, 1)
    )
    logits = jnp.where(row == column, logits, -jnp.inf)
  if last:  # Of columns alone: logits are KQ.
    place = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
    logits = jnp.where(place <= last[0][0], logits, -jnp.inf)
  weights = jnp.exp(logits - logits.max(axis=keys_axis, keepdims=True))
  return weights / weights.sum(axis=keys_axis, keepdims=True)


def _product(a, b, a_axis, b_axis):
  """Multiplies matrices over the named axes, summed in float32."""
  dtype = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
  return jax.lax.dot_general(
    a.astype(dtype),
    b.astype(dtype),
    (((a_axis,), (b_axis,)), ((), ())),
    precision="highest" if dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )
