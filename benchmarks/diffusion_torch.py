"""The rows of `benchmarks.diffusion` in PyTorch, of diffusers' networks and schedulers, as users write them: eager.

Attention is diffusers' default, torch's fused one. On a GPU convolutions take channels last, as diffusers advises.
"""

from __future__ import annotations

import os
import time
from typing import Any

import diffusers
import numpy as np
import scipy.fft
import torch

from benchmarks.diffusion_cases import ALPHA, EPSILON, FIRST, GUIDANCE, SCHEDULE, STEPS, TIMESTEP, Case
from core.weights import autoencoder, unet


class Torch:
  """Both networks with the weights of a case, and its inputs, on a device; see `benchmarks.diffusion.Ours`."""

  def __init__(self, case: Case, dtype: str):
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    self.dtype = getattr(torch, dtype)
    torch.backends.cudnn.allow_tf32 = False  # f32 is the reference
    layout = 'diffusers' if isinstance(case.heads, int) else 'diffusers-linear'
    weights = case.weights()
    self.unet = self._network(
      diffusers.UNet2DConditionModel, unet.config(case.unet(), layout), unet.export(weights['unet'], layout)
    )
    self.autoencoder = self._network(
      diffusers.AutoencoderKL, autoencoder.config(case.autoencoder()), autoencoder.export(weights['autoencoder'])
    )
    self.scaling = case.autoencoder().scaling
    self.inputs = {name: self._tensor(name, value) for name, value in case.arrays().items()}
    self.t = torch.full((case.batch,), TIMESTEP, device=self.device)
    self.noising = diffusers.DDPMScheduler.from_config(SCHEDULE.to_config())
    self.dct = torch.tensor(scipy.fft.dct(np.eye(8), axis=0, norm='ortho'), dtype=torch.float32, device=self.device)
    with torch.no_grad():
      self.clean = self.scaling * self._encode(self.inputs['x0']).mean.float()

  def prepare(self, row: str) -> dict[str, Any]:
    """Runs a row once: {'compile': seconds}."""
    if self.device == 'cuda':
      torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    self.run(row)
    return {'compile': time.perf_counter() - start}

  def run(self, row: str) -> torch.Tensor:
    """Computes a row and waits for it."""
    value = getattr(self, row)()
    if self.device == 'cuda':
      torch.cuda.synchronize()
    return value

  def memory(self) -> float | None:
    """GiB of the GPU that the last row needed, weights and all; None on the CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if self.device == 'cuda' else None

  def numpy(self, value: torch.Tensor) -> np.ndarray:
    """NHWC."""
    return np.moveaxis(value.detach().float().cpu().numpy(), 1, -1)

  @torch.no_grad()
  def unet_forward(self) -> torch.Tensor:
    return self._predict(self.inputs['noise'], self.t, self.inputs['context'])

  def unet_gradient(self) -> torch.Tensor:
    latents = self.clean.clone().requires_grad_()
    return torch.autograd.grad(self._denoising_loss(latents), latents)[0]

  @torch.no_grad()
  def sample(self) -> torch.Tensor:
    scheduler = diffusers.DDIMScheduler.from_config(SCHEDULE.to_config())
    scheduler.set_timesteps(STEPS)
    x, context = self.inputs['noise'], torch.cat([self.inputs['negative'], self.inputs['context']])
    for t in scheduler.timesteps:
      without, within = self._predict(torch.cat([x, x]), t.to(self.device), context).chunk(2)
      x = scheduler.step(without + GUIDANCE * (within - without), t, x).prev_sample
    return x

  def encode_gradient(self) -> torch.Tensor:
    x = self.inputs['x'].clone().requires_grad_()
    return torch.autograd.grad((self.scaling * self._encode(x).mean.float()).square().mean(), x)[0]

  def spl(self) -> torch.Tensor:
    return self._moved(ALPHA * self._attack_gradient(1.0).sign())

  def fpl(self) -> torch.Tensor:
    gradient = self._attack_gradient(0.0)
    batch, colours, height, width = gradient.shape
    blocks = gradient.unfold(2, 8, 8).unfold(3, 8, 8)
    order = torch.arange(8, device=self.device)
    high = (order[:, None] + order >= FIRST).float()
    signs = (self.dct @ blocks @ self.dct.T).sign() * high
    pixels = (self.dct.T @ signs @ self.dct).permute(0, 1, 2, 4, 3, 5).reshape(batch, colours, height, width)
    return self._moved(ALPHA * (64 / high.sum()).sqrt() * pixels)

  def _attack_gradient(self, weight: float) -> torch.Tensor:
    """Of the denoising loss and `weight` times the latent loss, in the photos."""
    x = self.inputs['x'].clone().requires_grad_()
    moments = self._encode(x)
    mean = moments.mean.float()
    drawn = self.scaling * (mean + moments.std.float() * self.inputs['eta'])
    loss = self._denoising_loss(drawn) + weight * (self.scaling * mean - self.clean).square().mean()
    return torch.autograd.grad(loss, x)[0]

  def _moved(self, step: torch.Tensor) -> torch.Tensor:
    """What a step changes, after the projection."""
    x0, x = self.inputs['x0'], self.inputs['x']
    return (x0 + (x + step - x0).clamp(-EPSILON, EPSILON)).clamp(-1, 1) - x

  def _denoising_loss(self, latents: torch.Tensor) -> torch.Tensor:
    noise = self.inputs['noise']
    noisy = self.noising.add_noise(latents, noise, self.t)
    return (self._predict(noisy, self.t, self.inputs['context']) - noise).square().mean()

  def _predict(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    return self.unet(x.to(self.dtype), t, context).sample.float()

  def _encode(self, x: torch.Tensor) -> Any:
    return self.autoencoder.encode(x.to(self.dtype)).latent_dist

  def _tensor(self, name: str, value: np.ndarray) -> torch.Tensor:
    value = torch.tensor(np.moveaxis(value, -1, 1).copy() if value.ndim == 4 else value, device=self.device)
    return value.to(self.dtype) if name in ('context', 'negative') else value

  def _network(self, kind: Any, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> torch.nn.Module:
    with torch.device(self.device):
      network = kind(**{name: value for name, value in config.items() if not name.startswith('_')})
    network.load_state_dict({name: torch.tensor(np.ascontiguousarray(value)) for name, value in tensors.items()})
    network = network.eval().requires_grad_(False).to(self.dtype)
    return network.to(memory_format=torch.channels_last) if self.device == 'cuda' else network
