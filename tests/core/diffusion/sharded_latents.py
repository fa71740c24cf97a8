"""Photos made, and losses with their gradient in the photos, over all devices of a process; run by test_latent_devices.

python sharded_latents.py OUTPUT.npz
"""

import sys

import jax
import numpy as np
import small_folders

from core.train import mesh as mesh_lib

MODEL, SIZE = small_folders.MODEL, small_folders.SIZE


def run() -> dict[str, np.ndarray]:
  """Rows over the devices, parameters on each of them: {'photos', 'slope' [4, S, S, 3], 'rows' per device}."""
  mesh = mesh_lib.make(jax.device_count(), 1, 1)
  rows = mesh_lib.batch_sharding(mesh)
  params = jax.device_put(small_folders.random_params(), mesh_lib.replicated(mesh))
  ids = np.arange(4 * 12).reshape(4, 12).astype(np.int32) % 7
  x = np.random.default_rng(0).uniform(-1, 1, (4, SIZE, SIZE, 3)).astype(np.float32)
  keys = jax.random.split(jax.random.key(0), 4)
  ids, x, keys = (jax.device_put(each, rows) for each in (ids, x, keys))

  @jax.jit
  def make(params, ids, keys):
    context = MODEL.context(params, ids)
    return MODEL.generate(params, context, keys, size=SIZE, sampler='ddpm', steps=3, negative=0 * context, guidance=2.0)

  @jax.jit
  def slope(params, x, ids, keys):
    def loss(x):
      latents = MODEL.draw(*MODEL.moments(params, x), keys)
      t = jax.numpy.full(4, 300)
      return MODEL.errors(params, latents, MODEL.context(params, ids), t, jax.numpy.ones_like(latents)).sum()

    return jax.grad(loss)(x)

  photos, gradient = make(params, ids, keys), slope(params, x, ids, keys)
  held = [each.sharding.shard_shape(each.shape)[0] for each in (photos, gradient)]
  return {'photos': np.asarray(photos), 'slope': np.asarray(gradient), 'rows': np.array(held)}


if __name__ == '__main__':
  np.savez(sys.argv[1], **run())
