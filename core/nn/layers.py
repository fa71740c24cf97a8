"""Small parts that every network uses: activations, linear layers and the attention product, quick on CPUs too."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.errors import UserError, nearest

ATTENTION = ('explicit', 'xla', 'cudnn')
FLASH_TOKENS = 512
"""Queries from which on the scores cost more than the products (our choice): the large levels of a U-Net."""
MASKED = -1e30
"""Score of a pair that may not attend: finite, so that a row without any allowed pair gives a mean and not NaN."""


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
  """The exact GELU, x Phi(x), as torch and the public ViTs define it.

  Through erf: `jax.nn.gelu(approximate=False)` goes through erfc, which takes three times as long on the CPU. Its
  derivative is computed on the way forward, so that one array is kept for the way back.
  """
  return _gelu(x)[0]


@gelu.defjvp
def _gelu_jvp(primals, tangents):
  value, slope = _gelu(primals[0])
  return value, slope * tangents[0]


def _gelu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  wide = x.astype(jnp.float32)
  cdf = 0.5 * (1.0 + jax.lax.erf(wide * 0.5**0.5))
  density = jnp.exp(-0.5 * wide * wide) * (2.0 * jnp.pi) ** -0.5
  return (wide * cdf).astype(x.dtype), (cdf + wide * density).astype(x.dtype)


def quick_gelu(x: jax.Array) -> jax.Array:
  """x sigmoid(1.702 x), the approximation that CLIP and ConvPass use."""
  return x * jax.nn.sigmoid(1.702 * x)


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  mask: jax.Array | None = None,
  implementation: str | None = None,
) -> jax.Array:
  """softmax(query key^T / sqrt(D)) value, per head.

  Args:
    query: [B, N, H, D].
    key, value: [B, M, H, D].
    mask: bool, broadcastable to [B, H, N, M]; True where the pair may attend.
    implementation: 'explicit' (batched matrix products with their own backward pass: on two CPU cores, 8 x 197 tokens
      and 12 heads, about a third of the time of 'xla' forward and half of it forward and backward), 'xla' and 'cudnn'
      (`jax.nn.dot_product_attention`; cuDNN wants half precision on an NVIDIA GPU, and never writes the scores). None:
      'explicit' on the CPU; 'cudnn' where it fits and there are `FLASH_TOKENS` queries and keys or more;
      else 'xla'.

  Returns:
    [B, N, H, D] in query's dtype. The softmax runs in f32.
  """
  if implementation is None:
    implementation = _implementation(query, key, mask)
  if implementation not in ATTENTION:
    raise UserError(
      f"attention implementation '{implementation}', expected one of {ATTENTION}.{nearest(implementation, ATTENTION)}"
    )
  if implementation == 'explicit':
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    return jnp.swapaxes(_explicit(query, key, value, mask), 1, 2)
  if mask is not None:  # cuDNN's wants the full shape
    mask = jnp.broadcast_to(mask, (query.shape[0], query.shape[2], query.shape[1], key.shape[1]))
  return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=implementation)


def _implementation(query: jax.Array, key: jax.Array, mask: jax.Array | None) -> str:
  """The quickest that device and arrays allow. cuDNN's backward pass refuses odd lengths (77 word pieces)."""
  if jax.default_backend() == 'cpu':
    return 'explicit'
  lengths = query.shape[1], key.shape[1]
  long = min(lengths) >= FLASH_TOKENS and not any(length % 2 for length in lengths) and mask is None
  fits = query.dtype in (jnp.bfloat16, jnp.float16) and query.shape[-1] % 8 == 0 and query.shape[-1] <= 128
  return 'cudnn' if long and fits and _has_flash() else 'xla'


def _has_flash() -> bool:
  """Whether the device is an NVIDIA GPU that cuDNN's attention runs on: Ampere or newer."""
  device = jax.devices()[0]
  return device.device_kind.startswith('NVIDIA') and float(device.compute_capability) >= 8.0


def attention_weights(query: jax.Array, key: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
  """softmax(query key^T / sqrt(D)) itself, f32 [B, H, N, M]: for dropout on it and for looking at it.

  Args:
    query: [B, N, H, D].
    key: [B, M, H, D].
    mask: as in `attention`.
  """
  scores = _product('bnhd,bmhd->bhnm', query * query.shape[-1] ** -0.5, key)
  return jax.nn.softmax(scores if mask is None else jnp.where(mask, scores, MASKED))


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _explicit(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Attention over [B, H, N, D]."""
  return _explicit_forward(query, key, value, mask)[0]


def _explicit_forward(query, key, value, mask):
  """The softmax's division is done after the value product: on [N, D] numbers per head instead of [N, M]."""
  scaled = query * query.shape[-1] ** -0.5
  scores = _product('bhnd,bhmd->bhnm', scaled, key)
  if mask is not None:
    scores = jnp.where(mask, scores, MASKED)
  weights = jnp.exp(scores - scores.max(-1, keepdims=True)).astype(value.dtype)
  scale = 1.0 / weights.sum(-1, keepdims=True, dtype=jnp.float32)
  out = (_product('bhnm,bhmd->bhnd', weights, value) * scale).astype(query.dtype)
  return out, (scaled, key, value, weights, scale, out)


def _explicit_backward(kept, gradient):
  """With p = weights * scale: dv = p^T do, ds = p (do v^T - sum(do * out)); `scale` again goes to the small factors.

  A^T B with a large A [N, M] is taken as (B^T A)^T: else XLA reads A column by column, at 1024 tokens for 3 times as
  long.
  """
  scaled, key, value, weights, scale, out = kept
  gradient = gradient.astype(jnp.float32) * scale
  mean = (gradient * out).sum(-1, keepdims=True)
  gradient = gradient.astype(value.dtype)
  d_value = jnp.swapaxes(_product('bhnd,bhnm->bhdm', gradient, weights), 2, 3)
  d_scores = (weights * (_product('bhnd,bhmd->bhnm', gradient, value) - mean)).astype(value.dtype)
  d_query = _product('bhnm,bhmd->bhnd', d_scores, key) * scaled.shape[-1] ** -0.5
  d_key = jnp.swapaxes(_product('bhnd,bhnm->bhdm', scaled, d_scores), 2, 3)
  return d_query.astype(scaled.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype), None


_explicit.defvjp(_explicit_forward, _explicit_backward)


class LayerNorm(nn.Module):
  """Layer normalisation over the last axis; statistics in f32, in torch's two passes: the one-pass form loses digits
  where the mean is large.

  Its backward pass is the closed form, two sums per row; on two CPU cores that saves 4% of a ViT-B/16 + ConvPass step.
  """

  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [..., C] -> [..., C] in `dtype`."""
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
    return (_normalized(x.astype(jnp.float32), self.epsilon) * scale + bias).astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _normalized(x: jax.Array, epsilon: float) -> jax.Array:
  """(x - mean) / sqrt(var + epsilon) over the last axis."""
  return _normalized_forward(x, epsilon)[0]


def _normalized_forward(x, epsilon):
  centred = x - x.mean(-1, keepdims=True)
  factor = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + epsilon)
  return centred * factor, (centred * factor, factor)


def _normalized_backward(epsilon, kept, gradient):
  del epsilon
  out, factor = kept
  along = (gradient * out).mean(-1, keepdims=True)
  return (factor * (gradient - gradient.mean(-1, keepdims=True) - out * along),)


_normalized.defvjp(_normalized_forward, _normalized_backward)


def dense(features: int, **options: Any) -> nn.Dense:
  """`nn.Dense` with the backward pass of `_matmul` on the CPU: the same arguments and the same parameters."""
  if jax.default_backend() == 'cpu':
    options['dot_general'] = _dot_general
  return nn.Dense(features, **options)


def _dot_general(x, kernel, dimension_numbers, precision=None, preferred_element_type=None):
  """`jax.lax.dot_general` for the one case that `nn.Dense` has: the last axis of x with the first of the kernel."""
  del dimension_numbers, precision, preferred_element_type
  return _matmul(x, kernel)


@jax.custom_vjp
def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """[..., C] x [C, D] -> [..., D], with the kernel's gradient as x^T dy.

  jax's own rule gives (dy^T x)^T. XLA on the CPU then writes dy^T, and for dy the gradient of a residual stream, a sum
  over all later sublayers, it computes that sum anew instead of reading it: the backward pass of a transformer grows
  with the square of its depth (measured: ViT-B/16 + ConvPass, twice as long).
  """
  return x @ kernel


def _matmul_backward(kept, gradient):
  x, kernel = kept
  flat = lambda value: value.reshape(-1, value.shape[-1])  # noqa: E731
  return jnp.einsum('...d,cd->...c', gradient, kernel), jnp.einsum('nc,nd->cd', flat(x), flat(gradient))


_matmul.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _matmul_backward)
