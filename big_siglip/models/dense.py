"""Linear layers and GELU in the forms that a TPU computes fast.

Shape letters: N whatever comes before the features, F features.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp


class Dense(nn.Module):
  """Multiplies the last axes by a kernel and adds a bias, as nn.DenseGeneral.

  Attributes:
    inputs: the axes of the kernel that are multiplied, such as (heads, size).
    features: the axes that take their place.
    dtype: of the computation; parameters are float32.
    flat: the arrays have one axis for several of the kernel's.
    gelu: x goes through tanh-GELU first; where the kernel is a matrix.
    columns: x is RTHh that the kernel "short" wrote as RHhT, by columns.
    kernel_init: of the matrix that the kernel is, its axes flattened to two.
    bias_init: of the bias, flattened.
  """

  inputs: tuple[int, ...]
  features: tuple[int, ...]
  dtype: str
  flat: bool = False
  gelu: bool = False
  columns: bool = False
  kernel_init: Callable[..., Any] = nn.initializers.xavier_uniform()
  bias_init: Callable[..., Any] = nn.initializers.zeros

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns x kernel + bias, or gelu(x) kernel + bias."""
    x, kernel, bias = x.astype(self.dtype), *self.weights()
    if self.flat:
      features = math.prod(self.features)
      kernel, bias = kernel.reshape(-1, features), bias.reshape(-1)
    if self.gelu:
      return add_bias(gelu_product(x, kernel), bias)
    axes = 1 if self.flat else len(self.inputs)
    return _affine(x, kernel, bias, axes, self.columns)

  @nn.compact
  def weights(self) -> tuple[jax.Array, jax.Array]:
    """Returns kernel and bias in the dtype of the computation."""
    matrix = math.prod(self.inputs), math.prod(self.features)
    kernel = self.param(
      "kernel",
      _flattened(self.kernel_init, matrix),
      (*self.inputs, *self.features),
    )
    bias = self.param(
      "bias", _flattened(self.bias_init, matrix[1:]), self.features
    )
    return kernel.astype(self.dtype), bias.astype(self.dtype)


def join(x: jax.Array, layers: Sequence[Dense]) -> jax.Array:
  """Returns what n layers make of x, head by head; ...D -> ...(Hn)h.

  Args:
    x: ...D.
    layers: with features (H, h) each, all flat or none.
  """
  kernels, biases = zip(*(layer.weights() for layer in layers), strict=True)
  kernel, bias = jnp.stack(kernels, axis=2), jnp.stack(biases, axis=1)
  size = () if layers[0].flat else kernel.shape[-1:]
  kernel = kernel.reshape(kernel.shape[0], -1, *size)
  bias = bias.reshape(-1, *size)
  return _affine(x.astype(kernel.dtype), kernel, bias, 1)


def _affine(x, kernel, bias, axes, columns=False):
  if kernel.ndim > 2:
    return add_bias(product(x, kernel, axes, columns), bias)
  return add_bias(jnp.tensordot(x, kernel, axes), bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(
  x: jax.Array, kernel: jax.Array, axes: int, columns: bool = False
) -> jax.Array:
  """Returns x kernel, summed over the last `axes` of x; (N.. F..) -> N.. F...

  The kernel's gradient is computed as a matrix. As JAX derives it, it has an
  axis of the heads' size, say 72, which a TPU fills up to 128.

  Args:
    x: N.. F...
    kernel: F.. F...
    axes: how many axes of x are multiplied.
    columns: x is RTHh, and lies as RHhT. Then it is multiplied as R(Hh)T: with
      heads of 64 as an axis of their own a TPU takes twice as long.
  """
  if columns:
    rows, tokens, heads, size = x.shape
    x = x.transpose(0, 2, 3, 1).reshape(rows, heads * size, tokens)
    kernel = kernel.reshape(heads * size, -1)
    return jnp.einsum("rft,fg->rtg", jax.lax.optimization_barrier(x), kernel)
  return jnp.tensordot(x, kernel, axes)


def _product_backward(axes, columns, saved, d_y):
  del columns
  x, kernel = saved
  outer = x.ndim - axes
  shape = x.shape
  x, d_y = (a.reshape(*a.shape[:outer], -1) for a in (x, d_y))
  d_x = jnp.tensordot(d_y, kernel.reshape(-1, d_y.shape[-1]), ((outer,), (1,)))
  d_x = d_x.reshape(shape)
  d_kernel = jnp.tensordot(x, d_y, (tuple(range(outer)),) * 2)
  # Without a barrier XLA would do as JAX does.
  d_kernel = jax.lax.optimization_barrier(d_kernel)
  return d_x, d_kernel.reshape(kernel.shape)


product.defvjp(
  lambda x, kernel, *how: (product(x, kernel, *how), (x, kernel)),
  _product_backward,
)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
  """Returns x + bias; (N.. F.., F..) -> N.. F...

  The bias's gradient is a sum over all N, tens of thousands of tokens. As JAX
  derives it that is a sum in bfloat16 on the vector units, which takes a TPU as
  long as a third of the layer's products. Here the matrix units multiply by
  ones, and sum in float32. Numbers in float32 are summed plainly.
  """
  return x + bias.reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


def _bias_gradient(bias, d_x):
  outer = tuple(range(d_x.ndim - bias.ndim))
  if d_x.dtype == jnp.float32:  # A CPU adds faster than it multiplies.
    return d_x, d_x.sum(outer)
  # Of one row, or known to be ones, the compiler would make it a sum again.
  ones = jax.lax.optimization_barrier(
    jnp.ones((8, *d_x.shape[: len(outer)]), d_x.dtype)
  )
  d_bias = jax.lax.dot_general(
    ones,
    d_x,
    ((tuple(axis + 1 for axis in outer), outer), ((), ())),
    preferred_element_type=jnp.float32,
  )
  return d_x, d_bias[0].astype(bias.dtype)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), bias), _bias_gradient)


@jax.custom_vjp
def gelu_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns gelu(x) kernel, with tanh-GELU; (N.. F, FG) -> N.. G.

  Without barriers XLA computes GELU again for every tile of this product. They
  stand behind the products that GELU and its derivative are fused with: in the
  backward pass JAX would put one before. The product of the kernel's gradient
  computes GELU itself: beside it that costs a TPU nothing, but to write what is
  as large as x does.
  """
  return _multiply(jax.lax.optimization_barrier(_gelu(x)), kernel)


def _gelu_product_backward(saved, d_y):
  x, kernel = saved
  activated, gelu_backward = jax.vjp(_gelu, x)
  _, backward = jax.vjp(_multiply, activated, kernel)
  d_activated, d_kernel = backward(d_y)
  (d_x,) = gelu_backward(d_activated)
  return jax.lax.optimization_barrier(d_x), d_kernel


gelu_product.defvjp(
  lambda x, kernel: (gelu_product(x, kernel), (x, kernel)),
  _gelu_product_backward,
)
_multiply = functools.partial(jnp.tensordot, axes=1)
_gelu = functools.partial(nn.gelu, approximate=True)


def _flattened(init, shape):
  return lambda key, whole: init(key, shape, jnp.float32).reshape(whole)
