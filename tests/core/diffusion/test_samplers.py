"""Samplers promise diffusers' samples from the same noise, in one compiled loop, and rows that ignore their batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.diffusion import Sampler, Schedule, sample, step_noise
from core.errors import UserError

SHAPE = (2, 4, 4, 4)
NOISE = jax.random.normal(jax.random.key(1), SHAPE)
IMAGE = jax.random.normal(jax.random.key(2), SHAPE)
RNG = jax.random.key(3)
PREDICTIONS = {'epsilon': 'epsilon', 'v': 'v_prediction'}
CLASSES = {
  'ddim': 'DDIMScheduler', 'ddpm': 'DDPMScheduler', 'dpmpp_2m': 'DPMSolverMultistepScheduler',
  'euler': 'EulerDiscreteScheduler',
}  # fmt: skip


def denoise(x, t, context=None, sin=jnp.sin):
  """A denoiser for both libraries: it depends on t everywhere, so that a wrong timestep shows."""
  u = (t / 1000).reshape(-1, 1, 1, 1)
  return 0.9 * u * x + 0.2 * sin(2 * x + 5 * u)


def reference(name, schedule, steps, *, strength=1.0, image=None, eta=0.0, monkeypatch=None):
  """The samples of diffusers' scheduler, driven as its pipelines do."""
  torch, diffusers = pytest.importorskip('torch'), pytest.importorskip('diffusers')
  options = {
    'beta_schedule': schedule.betas, 'beta_start': schedule.beta_start, 'beta_end': schedule.beta_end,
    'prediction_type': PREDICTIONS[schedule.prediction], 'steps_offset': schedule.steps_offset,
  }  # fmt: skip
  if schedule.spacing is not None:
    options['timestep_spacing'] = schedule.spacing
  if name in ('ddim', 'ddpm'):
    options |= {'clip_sample': schedule.clip is not None, 'clip_sample_range': schedule.clip or 1.0}
  else:
    options['use_karras_sigmas'] = schedule.karras
  if name == 'ddim':
    options['set_alpha_to_one'] = schedule.set_alpha_to_one
  scheduler = getattr(diffusers, CLASSES[name])(**options)
  scheduler.set_timesteps(steps)
  first = steps - int(steps * strength)
  timesteps = scheduler.timesteps[first:]
  if hasattr(scheduler, 'set_begin_index'):
    scheduler.set_begin_index(first)
  x = torch.tensor(np.array(NOISE))
  if image is None:
    x = x * scheduler.init_noise_sigma
  else:
    x = scheduler.add_noise(torch.tensor(np.array(image)), x, timesteps[:1].repeat(len(x)))
  fresh = iter(torch.tensor(np.array(step_noise(RNG, i, SHAPE))) for i in range(steps))
  if name == 'ddpm':
    monkeypatch.setattr('diffusers.schedulers.scheduling_ddpm.randn_tensor', lambda *_, **__: next(fresh))
  for t in timesteps:
    prediction = denoise(scheduler.scale_model_input(x, t), t.repeat(len(x)).float(), sin=torch.sin)
    more = {'eta': eta, 'variance_noise': next(fresh) if eta else None} if name == 'ddim' else {}
    x = scheduler.step(prediction, t, x, **more).prev_sample
  return x.numpy()


def assert_samples_of_diffusers(name, schedule, steps, monkeypatch, *, eta=0.0, image=None, strength=1.0):
  sampler = Sampler(name, schedule, eta=eta)
  ours = sample(denoise, NOISE, sampler, steps, rng=RNG, image=image, strength=strength)
  theirs = reference(name, schedule, steps, eta=eta, image=image, strength=strength, monkeypatch=monkeypatch)
  assert np.isfinite(theirs).all() and 0.1 < theirs.std() < 30
  np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize('name', CLASSES)
@pytest.mark.parametrize('prediction', PREDICTIONS)
@pytest.mark.parametrize('spacing', ['leading', 'trailing', 'linspace'])
def test_twenty_steps_are_those_of_diffusers(name, prediction, spacing, monkeypatch):
  """To 1e-4 of latents near 1; a grey level of an image in -1..1 is 8e-3."""
  assert_samples_of_diffusers(name, Schedule(prediction=prediction, spacing=spacing), 20, monkeypatch)


@pytest.mark.parametrize('name', CLASSES)
@pytest.mark.parametrize('steps', [1, 2, 7])
def test_few_steps_and_odd_numbers_of_them_are_those_of_diffusers(name, steps, monkeypatch):
  # One step of 'linspace' is timestep 0 alone, where the noise is taken for a sample: 'trailing' is the sensible one.
  assert_samples_of_diffusers(name, Schedule(prediction='v', spacing='trailing'), steps, monkeypatch)


@pytest.mark.parametrize(('eta', 'spacing'), [(0.3, 'trailing'), (1.0, 'leading')])
def test_fresh_noise_of_ddim_is_that_of_diffusers(eta, spacing, monkeypatch):
  assert_samples_of_diffusers('ddim', Schedule(spacing=spacing), 20, monkeypatch, eta=eta)


@pytest.mark.parametrize('name', CLASSES)
def test_without_a_spacing_timesteps_are_those_that_the_sampler_has_in_diffusers(name):
  theirs = getattr(pytest.importorskip('diffusers'), CLASSES[name])(steps_offset=1)
  theirs.set_timesteps(30)
  np.testing.assert_array_equal(Sampler(name).walk(30).timesteps, theirs.timesteps.numpy())


@pytest.mark.parametrize('name', ['ddim', 'ddpm'])
def test_clipping_the_last_step_and_linear_betas_are_those_of_diffusers(name, monkeypatch):
  pixels = Schedule('linear', 0.0001, 0.02, steps_offset=0, set_alpha_to_one=True, clip=1.0)
  assert_samples_of_diffusers(name, pixels, 20, monkeypatch)
  free = sample(denoise, NOISE, Sampler(name, dataclasses.replace(pixels, clip=None)), 20, rng=RNG)
  clipped = sample(denoise, NOISE, Sampler(name, pixels), 20, rng=RNG)
  assert jnp.abs(free - clipped).max() > 0.1


@pytest.mark.parametrize('name', ['dpmpp_2m', 'euler'])
@pytest.mark.parametrize('spacing', [None, 'leading'])
def test_noise_levels_of_karras_are_those_of_diffusers(name, spacing, monkeypatch):
  assert_samples_of_diffusers(name, Schedule(spacing=spacing, karras=True), 20, monkeypatch)


@pytest.mark.parametrize('name', CLASSES)
@pytest.mark.parametrize('strength', [0.3, 0.75])
def test_image_to_image_is_that_of_diffusers(name, strength, monkeypatch):
  assert_samples_of_diffusers(name, Schedule(), 20, monkeypatch, image=IMAGE, strength=strength)


# Not DDIM with 'linspace': it steps by T // steps, as in diffusers, which is not the distance of those timesteps.
FOLLOWED = [
  (sampler, spacing)
  for sampler in (Sampler('ddim', eta=0.5), *map(Sampler, CLASSES))
  for spacing in ('leading', 'trailing', 'linspace')
  if (sampler.name, spacing) != ('ddim', 'linspace')
]


@pytest.mark.parametrize(('sampler', 'spacing'), FOLLOWED, ids=lambda value: getattr(value, 'name', value))
def test_a_perfect_network_is_followed_to_the_next_noise_level(sampler, spacing):
  """If x = signal z + noise ε and the network knows both, a step gives signal' z + noise' ε'."""
  schedule = Schedule(spacing=spacing, set_alpha_to_one=True)
  walk = dataclasses.replace(sampler, schedule=schedule).walk(20)
  then_signal, then_noise = np.append(walk.signal[1:], 1), np.append(walk.noise[1:], 0)
  np.testing.assert_allclose(walk.x * walk.signal + walk.sample + walk.previous, then_signal, atol=1e-6)
  np.testing.assert_allclose((walk.x * walk.noise + walk.epsilon) ** 2 + walk.fresh**2, then_noise**2, atol=1e-6)
  assert walk.fresh[-1] == 0 and walk.previous[0] == 0
  assert walk.fresh[:-1].all() == (sampler.name == 'ddpm' or sampler.eta > 0)


def gaussian(x, t, context=None):
  """The best denoiser where samples are N(2, 0.5): E[ε | x]."""
  signal, noise = (jnp.interp(t, jnp.arange(1000), rate)[:, None] for rate in Schedule().rates)
  return noise * (x - 2 * signal) / (signal**2 * 0.25 + noise**2)


def exact(noise):
  """Where the probability-flow equation carries noise of timestep 999 when samples are N(2, 0.5)."""
  signal, rate = (rates[-1] for rates in Schedule().rates)
  return 2 + 0.5 * (noise - 2 * signal) / np.sqrt(0.25 * signal**2 + rate**2)


def test_samplers_without_fresh_noise_solve_the_equation_and_the_second_order_is_closer():
  noise = jax.random.normal(jax.random.key(5), (4, 50))
  schedule = Schedule(spacing='trailing', set_alpha_to_one=True)

  def error(name, steps):
    return float(jnp.abs(sample(gaussian, noise, Sampler(name, schedule), steps) - exact(noise)).mean())

  first, second = error('ddim', 20), error('dpmpp_2m', 20)
  assert second < 0.8 * first < 0.06
  assert error('ddim', 200) < 0.2 * first and error('dpmpp_2m', 200) < 0.2 * second and error('euler', 200) < 0.02


def test_fresh_noise_leaves_mean_and_deviation():
  noise = jax.random.normal(jax.random.key(5), (2, 5000))
  for sampler in (Sampler('ddpm'), Sampler('ddim', eta=1.0)):
    found = sample(gaussian, noise, sampler, 200, rng=RNG)
    np.testing.assert_allclose([found.mean(), found.std()], [2, 0.5], atol=0.03)


def conditional(x, t, context):
  return denoise(x, t) + context['text'][:, :, None, None] + context['scale'].reshape(-1, 1, 1, 1) * x


CONTEXT = {'text': jnp.full((2, 4), 0.5), 'scale': jnp.array([0.1, 0.2])}
NEGATIVE = {'text': jnp.full((2, 4), -0.3), 'scale': jnp.array([0.0, 0.05])}


def test_guidance_leads_away_from_the_negative():
  sampler = Sampler('ddim')
  run = jax.jit(lambda w: sample(conditional, NOISE, sampler, 5, context=CONTEXT, negative=NEGATIVE, guidance=w))

  def by_hand(x, t, context):
    without, within = conditional(x, t, NEGATIVE), conditional(x, t, CONTEXT)
    return without + 7.5 * (within - without)

  np.testing.assert_allclose(run(7.5), sample(by_hand, NOISE, sampler, 5), rtol=1e-4, atol=1e-4)
  alone = functools.partial(sample, conditional, NOISE, sampler, 5)
  np.testing.assert_allclose(run(1.0), alone(context=CONTEXT), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(run(0.0), alone(context=NEGATIVE), rtol=1e-5, atol=1e-5)
  assert jnp.abs(run(7.5) - run(1.0)).max() > 0.1


def test_the_network_is_traced_once_in_one_loop_and_sees_one_batch():
  seen = []

  def watched(x, t, context):
    seen.append((x.shape, t.shape, t.dtype))
    return conditional(x, t, context)

  def run(noise):
    return sample(watched, noise, Sampler('dpmpp_2m'), 20, context=CONTEXT, negative=NEGATIVE)

  jaxpr = jax.make_jaxpr(run)(NOISE)
  assert seen == [((4, 4, 4, 4), (4,), jnp.int32)]
  scans = [equation for equation in jaxpr.eqns if equation.primitive.name == 'scan']
  assert len(scans) == 1 and scans[0].params['length'] == 20


@pytest.mark.parametrize('sampler', [Sampler('ddpm'), Sampler('ddim', eta=1.0)], ids=lambda s: s.name)
def test_with_a_key_for_each_row_a_row_does_not_depend_on_its_batch(sampler):
  keys = jax.random.split(RNG, 2)
  together = sample(denoise, NOISE, sampler, 5, rng=keys)
  for i in range(2):
    alone = sample(denoise, NOISE[i : i + 1], sampler, 5, rng=keys[i : i + 1])
    np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-5)
  same = sample(denoise, NOISE, sampler, 5, rng=jax.random.split(jax.random.key(9), 2))
  assert jnp.abs(together - same).max() > 0.1


def test_trap_a_bf16_network_leaves_samples_and_rates_in_f32():
  def rough(x, t, context):
    return denoise(x.astype(jnp.bfloat16), t).astype(jnp.bfloat16)

  exact = sample(denoise, NOISE, Sampler('ddim', Schedule(prediction='v')), 20)
  found = sample(rough, NOISE.astype(jnp.bfloat16), Sampler('ddim', Schedule(prediction='v')), 20)
  assert found.dtype == jnp.float32
  assert jnp.abs(found - exact).max() < 0.05  # with ᾱ_t in bf16 the steps near t = 0 vanish


def test_strength_one_with_an_image_still_knows_it_and_little_strength_keeps_it():
  weak = sample(gaussian, NOISE[..., 0, 0], Sampler('ddim'), 20, image=IMAGE[..., 0, 0], strength=0.05)
  signal, noise = Schedule().rates
  assert jnp.abs(weak - IMAGE[..., 0, 0]).max() < 0.2
  assert len(Sampler('ddim').walk(20, 0.05).timesteps) == 1 and signal[1] > noise[1]


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: Sampler('dpmpp2m'), "Did you mean 'dpmpp_2m'"),
    (lambda: Sampler('euler', eta=1.0), "'euler' has no eta"),
    (lambda: Sampler('ddim', eta=2.0), 'expected 0 to 1'),
    (lambda: Sampler().walk(0), 'steps is 0; expected 1 to 1000'),
    (lambda: Sampler().walk(1001), 'steps is 1001'),
    (lambda: Sampler().walk(1000), "spacing 'leading' and steps_offset 1 do not fit into 0 to 999"),
    (lambda: Sampler('dpmpp_2m').walk(1000), 'take fewer steps'),
    (lambda: Sampler().walk(20, 1.5), 'strength is 1.5'),
    (lambda: Sampler().walk(20, 0.01), 'raise strength to 0.05 or more'),
    (lambda: sample(denoise, NOISE, Sampler(), 20, strength=0.5), 'no image to start from'),
    (lambda: sample(denoise, NOISE, Sampler(), 20, image=IMAGE[:1]), 'latents and noise of one shape'),
    (lambda: sample(conditional, NOISE, Sampler(), 20, negative=NEGATIVE), 'no `context` to lead to'),
    (lambda: sample(denoise, NOISE, Sampler('ddpm'), 20), 'give `rng`'),
    (lambda: sample(denoise, NOISE, Sampler('ddpm'), 20, rng=jax.random.split(RNG, 1)), 'or 2 of them, one for each'),
    (lambda: sample(denoise, NOISE, Sampler('ddpm'), 20, rng=jax.random.key_data(RNG)), 'rng is uint32'),
  ],
)
def test_errors_name_the_argument_and_the_way_out(call, message):
  with pytest.raises(UserError, match=message):
    call()
