"""ARR: recognise every clip, then reason over the sequence (spec section 3).

  z_k = E(V_k)                      encoder, clip by clip                  3.1  encoders.py
  r_k = W_c Dropout(z_k) + b_c      recognition of clip k                  3.2
  p_k = G(z_1..z_k)                 decoder: expected feature of k + 1     3.3  aggregation.py
  q_k = W_n Dropout(p_k) + b_n      next action prediction                 3.4

Logits have C + 1 columns, the last for "unknown". With the clips spaced by tau_a, q_T is the anticipation: the action
that starts tau_a after the end of the last clip. As p_k lives in the space of z, one classifier can serve both heads
(`share_heads`), and p_T can be appended to the clips to look further ahead (`rollout`).

Clips before the first frame of a video (padding) repeat that frame and are treated like any other (our choice).
Classifiers start as N(0, 0.01) with zero bias (AVT), with the same gain where D < 768 (`core.nn.gpt.normal`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from core.errors import UserError
from core.nn import gpt
from core.train import mesh
from video.arr import aggregation, encoders
from video.arr.grid import Grid

ENCODER, DECODER, RECOGNITION, ANTICIPATION, ORDER = 'encoder', 'decoder', 'recognition', 'anticipation', 'order'
"""The parts, as first parts of the '/'-joined parameter paths."""

Variables = Mapping[str, Any]


class Classifier(nn.Module):
  """Dropout and a linear layer, in f32."""

  classes: int
  dropout: float

  @nn.compact
  def __call__(self, features: jax.Array, train: bool = False) -> jax.Array:
    """[..., D] -> logits f32 [..., classes]."""
    features = nn.Dropout(self.dropout)(features.astype(jnp.float32), deterministic=not train)
    return nn.Dense(self.classes, kernel_init=gpt.normal(0.01), name='linear')(features)


class Anticipator:
  """The network with its two heads. Holds no weights: variables in, arrays out; every method can be traced."""

  def __init__(self, config: Any, *, classes: int, grid: Grid, feature_size: int = 0, order: bool = False):
    """Reads the section `config.model`.

    Args:
      config: encoder (`encoders.ENCODERS`) with variant (of the ViT, or `encoders.FEATURE_VARIANTS`), image_size, width
        (D of 'feature' and 'label'; a ViT has its own), remat, scan; decoder (`aggregation.build`); classifier_dropout;
        share_heads; dtype (of computation). `weights` is for the caller, who gives it to `load`.
      classes: C, without "unknown".
      grid: T and n.
      feature_size: length of the vectors of a feature store.
      order: whether there is the position classifier of the pre-training 'order' (`losses.order`).

    Raises:
      UserError: a choice that does not exist or that does not go together.
    """
    self.classes, self.clips = classes, grid.clips
    self.encoder = encoders.build(config, classes=classes, grid=grid, feature_size=feature_size)
    self.width = self.encoder.width
    dtype = jnp.dtype(config.dtype)
    self.decoder = aggregation.build(config.decoder, features=self.width, clips=grid.clips, dtype=dtype)
    self.has_blocks = isinstance(self.decoder, aggregation.Decoder)
    self.head = Classifier(classes + 1, config.classifier_dropout)
    self.shared = bool(config.share_heads)
    self.has_order = order
    if order:
      self._needs_blocks("the pre-training 'order'")

  def init(self, rng: jax.Array) -> dict[str, Any]:
    """Fresh variables; pure and traceable.

    Returns:
      {'params': {'encoder', 'decoder', 'recognition', 'anticipation' (absent when heads are shared), 'order' (if asked
      for)}, 'statistics': {'sigma': f32 [D]}}: sigma, the deviations of z over the training set, is measured before the
      decoder is pre-trained (`losses.deviation`) and 1 until then.
    """
    keys = jax.random.split(rng, 5)
    z = jnp.zeros((1, self.clips, self.width))
    params = {
      ENCODER: self.encoder.init(keys[0]),
      DECODER: self.decoder.init(keys[1], z)['params'],
      RECOGNITION: self.head.init(keys[2], z)['params'],
    }
    if not self.shared:
      params[ANTICIPATION] = self.head.init(keys[3], z)['params']
    if self.has_order:
      params[ORDER] = {'prototypes': jax.random.normal(keys[4], (self.clips, self.width))}
    return {'params': params, 'statistics': {'sigma': jnp.ones((self.width,))}}

  def encode(
    self, variables: Variables, inputs: jax.Array, *, train: bool = False, rng: jax.Array | None = None
  ) -> jax.Array:
    """z f32 [B, T, D] of clips.

    Args:
      variables: from `init`, `load` or a checkpoint.
      inputs: by encoder: uint8 or f32 [B, T, n, H, W, 3] in 0..255, f32 [B, T, F], or int [B, T] in [0, C]. T may
        differ from the grid's: a streaming front end encodes one clip at a time.
      train, rng: for encoders with dropout; ours have none.
    """
    del rng
    return self.encoder(variables['params'][ENCODER], inputs, train)

  def recognise(
    self, variables: Variables, z: jax.Array, *, train: bool = False, rng: jax.Array | None = None
  ) -> jax.Array:
    """r f32 [..., C + 1], logits of the action of each clip, from z [..., D]; `rng` of the dropout, when `train`."""
    return self.head.apply({'params': variables['params'][RECOGNITION]}, z, train, rngs=_dropout(rng))

  def reason(
    self, variables: Variables, z: jax.Array, *, train: bool = False, rng: jax.Array | None = None
  ) -> jax.Array:
    """p f32 [B, T, D], the expected feature of the clip after each clip, from z [B, T, D]."""
    return self.decoder.apply({'params': variables['params'][DECODER]}, z, train=train, rngs=_dropout(rng))

  def anticipate(
    self, variables: Variables, p: jax.Array, *, train: bool = False, rng: jax.Array | None = None
  ) -> jax.Array:
    """q f32 [..., C + 1], logits of the action of the clip after each clip, from p [..., D]."""
    head = RECOGNITION if self.shared else ANTICIPATION
    return self.head.apply({'params': variables['params'][head]}, p, train, rngs=_dropout(rng))

  def apply(
    self, variables: Variables, inputs: jax.Array, *, train: bool = False, rng: jax.Array | None = None
  ) -> dict[str, jax.Array]:
    """All of it.

    Args:
      variables, inputs, train: as in `encode`.
      rng: key of all dropout; needed when `train` and there is any.

    Returns:
      {'z' [B, T, D], 'r' [B, T, C + 1], 'p' [B, T, D], 'q' [B, T, C + 1]}, all f32. q[:, -1] is the anticipation.
    """
    keys = (None,) * 3 if rng is None else jax.random.split(rng, 3)
    z = self.encode(variables, inputs, train=train)
    r = self.recognise(variables, z, train=train, rng=keys[0])
    p = self.reason(variables, z, train=train, rng=keys[1])
    return {'z': z, 'r': r, 'p': p, 'q': self.anticipate(variables, p, train=train, rng=keys[2])}

  def attention(self, variables: Variables, z: jax.Array) -> jax.Array:
    """Attention maps f32 [B, L, heads, T, T] of the decoder: row k is what step k looks at."""
    self._needs_blocks('an attention map')
    return self.decoder.apply({'params': variables['params'][DECODER]}, z, return_attention=True)[1]

  def order(
    self, variables: Variables, z: jax.Array, *, train: bool = False, rng: jax.Array | None = None
  ) -> jax.Array:
    """Scores f32 [B, T, T] for `losses.order`: cosine of each clip's output with the prototype of each place.

    The decoder runs without its mask and without positions, each of which would give the places away.
    """
    blind = self.decoder.clone(gpt=self.decoder.gpt.clone(causal=False, positions=False))
    p = blind.apply({'params': variables['params'][DECODER]}, z, train=train, rngs=_dropout(rng))
    prototypes = variables['params'][ORDER]['prototypes']
    unit = lambda x: x * jax.lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-12)  # noqa: E731
    return unit(p) @ unit(prototypes).T

  def rollout(self, variables: Variables, z: jax.Array, steps: int) -> jax.Array:
    """Looks further ahead: p_T becomes the next clip, and so on (spec 5.1).

    The window of T clips slides. (AVT goes on in the key/value cache instead, into positions that no training step has
    touched.)

    Args:
      variables: weights.
      z: f32 [B, K, D], K <= T clips.
      steps: how many, static.

    Returns:
      q f32 [B, steps, C + 1], of the actions at tau_s, tau_s + spacing, ...; the first is q_K of `apply`.
    """
    ahead = []
    for _ in range(steps):
      last = self.reason(variables, z)[:, -1:]
      ahead.append(self.anticipate(variables, last))
      z = jnp.concatenate([z, last], axis=1)[:, -self.clips :]
    return jnp.concatenate(ahead, axis=1)

  def empty_cache(self, batch: int) -> Any:
    """The cache of `step` before the first clip, for `batch` streams."""
    return self.decoder.empty_cache(batch)

  def step(self, variables: Variables, z_k: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
    """One clip more: z_k f32 [B, D] and what is kept of z_1..z_{k-1} -> (q_k f32 [B, C + 1], cache).

    The T-th clip fills the cache of the decoder: a stream that goes on starts a new cache with its last clips.
    """
    params = {'params': variables['params'][DECODER]}
    p, cache = self.decoder.apply(params, z_k[:, None], cache=cache)
    return self.anticipate(variables, p[:, 0]), cache

  def load(self, variables: Variables, path: str) -> dict[str, Any]:
    """Merges public weights of a ViT or VideoMAE encoder in (`core.weights.files.read`) and prints the account.

    Decoder and heads stay as they are; the classifier of the source is ignored. '' changes nothing.
    """
    if not path:
      return dict(variables)
    if not isinstance(self.encoder, encoders.Pixels):
      raise UserError(
        f"model.weights is '{path}', but this encoder does not take pixels: only ViTs have public weights."
      )
    flat = flax.traverse_util.flatten_dict(variables['params'], sep='/')
    start = f'{ENCODER}/'
    own = {name.removeprefix(start): leaf for name, leaf in flat.items() if name.startswith(start)}
    loaded, account = self.encoder.load(own, path)
    account.fresh |= {name: leaf.size for name, leaf in flat.items() if not name.startswith(start)}
    if jax.process_index() == 0:
      print(account, flush=True)
    flat |= {start + name: mesh.placed(array, own[name]) for name, array in loaded.items()}
    return {**variables, 'params': flax.traverse_util.unflatten_dict(flat, sep='/')}

  def _needs_blocks(self, what: str) -> None:
    if not self.has_blocks:
      raise UserError(f"{what} needs model.decoder.aggregation 'decoder', not a {type(self.decoder).__name__}.")


def _dropout(rng: jax.Array | None) -> dict[str, jax.Array]:
  return {} if rng is None else {'dropout': rng}
