"""Diffusion without a network: the noise schedule, and samplers that walk it in one compiled loop.

  schedule = read('CompVis/scheduler')                       # or Schedule(), which is that of Stable Diffusion 1
  noised = schedule.add_noise(latents, noise, t)             # a network learns schedule.target(latents, noise, t)
  latents = sample(denoise, noise, Sampler('dpmpp_2m', schedule), 20, context=text, negative=empty, guidance=7.5)

schedule.py is the process that adds noise, samplers.py takes it away. `denoise` is any function of (x, t, context).
"""

from core.diffusion.samplers import Sampler, Walk, sample, step_noise
from core.diffusion.schedule import VARIANTS, Schedule, read

__all__ = ['VARIANTS', 'Sampler', 'Schedule', 'Walk', 'read', 'sample', 'step_noise']
