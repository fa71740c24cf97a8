"""The schedule promises diffusers' process, rates in f32 whatever the latents, and refuses what it cannot follow."""

import json

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.diffusion import VARIANTS, Schedule, read
from core.errors import UserError

# As published beside the weights of Stable Diffusion 1.5 and 2.1.
SD15 = {
  '_class_name': 'PNDMScheduler', '_diffusers_version': '0.6.0', 'beta_end': 0.012, 'beta_schedule': 'scaled_linear',
  'beta_start': 0.00085, 'num_train_timesteps': 1000, 'set_alpha_to_one': False, 'skip_prk_steps': True,
  'steps_offset': 1, 'trained_betas': None, 'clip_sample': False,
}  # fmt: skip
SD21 = SD15 | {'_class_name': 'DDIMScheduler', 'prediction_type': 'v_prediction'}
KEYS = jax.random.split(jax.random.key(0), 2)


def normal(shape, dtype=jnp.float32):
  return tuple(jax.random.normal(key, shape, dtype) for key in KEYS)


def test_the_four_values_of_the_specification():
  found = Schedule().alphas_cumprod[[0, 100, 500, 999]]
  np.testing.assert_allclose(found, [0.99915, 0.894223, 0.276333, 0.0046601], rtol=2e-6)


@pytest.mark.parametrize('betas', ['scaled_linear', 'linear'])
def test_noising_and_velocity_are_those_of_diffusers(betas):
  torch, diffusers = pytest.importorskip('torch'), pytest.importorskip('diffusers')
  theirs = diffusers.DDPMScheduler(beta_schedule=betas, beta_start=0.00085, beta_end=0.012)
  ours = Schedule(betas=betas, prediction='v')
  assert np.abs(ours.alphas_cumprod - theirs.alphas_cumprod.numpy()).max() < 1e-6
  z, eps = normal((7, 2, 3, 4))
  t = np.array([0, 1, 10, 250, 500, 998, 999])
  arguments = torch.tensor(np.array(z)), torch.tensor(np.array(eps)), torch.tensor(t)
  np.testing.assert_allclose(ours.add_noise(z, eps, t), theirs.add_noise(*arguments), atol=4e-6)
  np.testing.assert_allclose(ours.target(z, eps, t), theirs.get_velocity(*arguments), atol=4e-6)
  assert Schedule(betas=betas).target(z, eps, t) is eps or (Schedule(betas=betas).target(z, eps, t) == eps).all()


def test_trap_rates_stay_f32_when_latents_are_bf16():
  schedule = Schedule()
  assert schedule.alphas_cumprod.dtype == np.float32 and len(np.unique(schedule.alphas_cumprod)) == 1000
  rounded = jnp.asarray(schedule.alphas_cumprod, jnp.bfloat16)
  assert len(np.unique(rounded)) == 733 and float(1 - rounded[0]) == 0  # what the cast would do, spec 3.1
  zeros, ones = jnp.zeros((1, 2), jnp.bfloat16), jnp.ones((1, 2), jnp.bfloat16)
  first = jnp.zeros(1, jnp.int32)
  noised = jax.jit(schedule.add_noise)(zeros, ones, first)
  assert noised.dtype == jnp.bfloat16
  np.testing.assert_allclose(noised.astype(jnp.float32), 0.029155, rtol=4e-3)
  velocity = Schedule(prediction='v').target(ones, zeros, first)
  np.testing.assert_allclose(velocity.astype(jnp.float32), -0.029155, rtol=4e-3)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(t=st.integers(0, 999), prediction=st.sampled_from(['epsilon', 'v']), seed=st.integers(0, 99))
def test_a_perfect_prediction_gives_back_sample_and_noise(t, prediction, seed):
  schedule = Schedule(prediction=prediction)
  rng = np.random.default_rng(seed)
  z, eps = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)
  t = jnp.full(3, t)
  noised, target = schedule.add_noise(z, eps, t), schedule.target(z, eps, t)
  # At t = 999 a prediction of ε is divided by 0.068, and f32's rounding with it.
  np.testing.assert_allclose(schedule.to_sample(target, noised, t), z, atol=2e-5)
  np.testing.assert_allclose(schedule.to_epsilon(target, noised, t), eps, atol=2e-5)


def test_noising_keeps_unit_variance_and_forgets_the_sample_at_the_rate_it_says():
  schedule = Schedule()
  z, eps = normal((6, 200_000))
  t = jnp.array([0, 100, 300, 500, 800, 999])
  noised = schedule.add_noise(z, eps, t)
  np.testing.assert_allclose(noised.std(1), 1, atol=0.01)
  correlation = jnp.array([jnp.corrcoef(a, b)[0, 1] for a, b in zip(z, noised, strict=True)])
  np.testing.assert_allclose(correlation, np.sqrt(schedule.alphas_cumprod[t]), atol=0.01)
  velocity = Schedule(prediction='v').target(z, eps, t)
  np.testing.assert_allclose(velocity.std(1), 1, atol=0.01)
  np.testing.assert_allclose([jnp.corrcoef(a, b)[0, 1] for a, b in zip(velocity, noised, strict=True)], 0, atol=0.01)
  signal, noise = schedule.rates
  assert (np.diff(signal / noise) < 0).all()
  np.testing.assert_allclose(signal**2 + noise**2, 1, atol=1e-6)


def test_a_row_does_not_depend_on_its_batch_and_one_timestep_serves_all_rows():
  schedule = Schedule(prediction='v')
  z, eps = normal((3, 2, 2, 4))
  t = jnp.array([5, 700, 30])
  together = schedule.add_noise(z, eps, t)
  for i in range(3):
    np.testing.assert_array_equal(together[i : i + 1], schedule.add_noise(z[i : i + 1], eps[i : i + 1], t[i : i + 1]))
  same = schedule.add_noise(z, eps, jnp.full(3, 700))
  np.testing.assert_array_equal(same, schedule.add_noise(z, eps, jnp.asarray(700)))
  assert (np.asarray(same[0]) != np.asarray(together[0])).any()


def test_published_configurations_are_the_variants():
  assert Schedule.from_config(SD15) == VARIANTS['sd1'] == VARIANTS['sd2'] == Schedule()
  assert Schedule.from_config(SD21) == VARIANTS['sd2_768'] != VARIANTS['sd2']


def test_absent_keys_have_the_defaults_of_the_class_that_is_named():
  pixels = Schedule.from_config({'_class_name': 'DDIMScheduler'})
  assert (pixels.clip, pixels.set_alpha_to_one, pixels.betas, pixels.beta_end) == (1.0, True, 'linear', 0.02)
  assert pixels.steps_offset == 0 and pixels.spacing is None
  latents = Schedule.from_config({'_class_name': 'PNDMScheduler'})
  assert (latents.clip, latents.set_alpha_to_one) == (None, False)
  assert Schedule.from_config({'clip_sample': True, 'clip_sample_range': 3.0}).clip == 3.0


@pytest.mark.parametrize(
  ('name', 'options', 'attribute', 'value'),
  [
    ('DDIMScheduler', {'timestep_spacing': 'trailing'}, 'spacing', 'trailing'),
    ('DDPMScheduler', {'prediction_type': 'v_prediction'}, 'prediction', 'v'),
    ('PNDMScheduler', {'steps_offset': 1}, 'steps_offset', 1),
    ('DPMSolverMultistepScheduler', {'use_karras_sigmas': True}, 'karras', True),
    ('EulerDiscreteScheduler', {'timestep_spacing': 'leading'}, 'spacing', 'leading'),
  ],
)
def test_what_diffusers_saves_is_read(tmp_path, name, options, attribute, value):
  diffusers = pytest.importorskip('diffusers')
  getattr(diffusers, name)(beta_schedule='scaled_linear', **options).save_pretrained(tmp_path)
  schedule = read(tmp_path)
  assert getattr(schedule, attribute) == value and schedule.betas == 'scaled_linear'


@pytest.mark.parametrize(
  'schedule',
  [
    VARIANTS['sd1'],
    VARIANTS['sd2_768'],
    Schedule('linear', 0.0001, 0.02, 500, spacing='trailing', steps_offset=0, set_alpha_to_one=True, clip=2.0),
    Schedule(karras=True, spacing='leading'),
  ],
)
def test_what_is_written_is_read_back_and_taken_by_diffusers(tmp_path, schedule):
  (tmp_path / 'scheduler_config.json').write_text(json.dumps(schedule.to_config()))
  assert read(tmp_path) == schedule
  diffusers = pytest.importorskip('diffusers')
  theirs = getattr(diffusers, schedule.to_config()['_class_name']).from_pretrained(tmp_path)
  np.testing.assert_allclose(theirs.alphas_cumprod, schedule.alphas_cumprod, atol=1e-6)
  assert theirs.config.prediction_type == {'epsilon': 'epsilon', 'v': 'v_prediction'}[schedule.prediction]
  assert (theirs.config.get('use_karras_sigmas', False), theirs.config.steps_offset) == (
    schedule.karras,
    schedule.steps_offset,
  )
  if not schedule.karras:
    assert theirs.config.clip_sample_range == (schedule.clip or 1) and theirs.config.clip_sample == bool(schedule.clip)


def test_reading_from_a_model_its_folder_or_the_file(tmp_path):
  folder = tmp_path / 'scheduler'
  folder.mkdir()
  file = folder / 'scheduler_config.json'
  file.write_text(json.dumps(SD21))
  assert read(tmp_path) == read(folder) == read(str(file)) == VARIANTS['sd2_768']


def test_reading_what_is_not_there_or_not_a_configuration(tmp_path):
  with pytest.raises(UserError, match=r'no schedule there; expected scheduler_config.json'):
    read(tmp_path)
  file = tmp_path / 'scheduler_config.json'
  file.write_text('<html>')
  with pytest.raises(UserError, match='expected JSON'):
    read(tmp_path)
  file.write_text('[1]')
  with pytest.raises(UserError, match='found a list'):
    read(tmp_path)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'beta_schedule': 'squaredcos_cap_v2'}, 'beta_schedule.*squaredcos_cap_v2.*expected one of scaled_linear, linear'),
    ({'prediction_type': 'sample'}, 'prediction_type.*sample.*expected one of epsilon, v_prediction'),
    ({'timestep_spacing': 'trailling'}, "Did you mean 'trailing'"),
    ({'trained_betas': [0.1, 0.2]}, 'trained_betas'),
    ({'thresholding': True}, 'thresholding'),
    ({'rescale_betas_zero_snr': True}, "'rescale_betas_zero_snr' is True, but only False is built"),
    ({'algorithm_type': 'sde-dpmsolver++'}, 'only .dpmsolver\\+\\+. is built'),
    ({'solver_order': 3}, 'solver_order'),
    ({'final_sigmas_type': 'sigma_min'}, 'final_sigmas_type'),
    ({'variance_type': 'learned_range'}, 'variance_type'),
    ({'use_exponential_sigmas': True}, 'use_exponential_sigmas'),
    ({'betas_start': 0.1}, "'betas_start' is not known here. Did you mean 'beta_start'"),
    ({'shift': 3.0}, "'shift' is not known"),
    ({'beta_start': 0.5}, 'beta_start 0.5, beta_end 0.012'),
  ],
)
def test_what_would_change_the_samples_is_refused_by_name(change, message):
  with pytest.raises(UserError, match=message):
    Schedule.from_config(SD15 | change)


def test_mistyped_arguments_are_answered():
  with pytest.raises(UserError, match="Did you mean 'epsilon'"):
    Schedule(prediction='epsilom')
  with pytest.raises(UserError, match="Did you mean 'linear'"):
    Schedule(betas='linaer')
