"""Methods as data: units, turns of SPL and FPL, names, words that mean nothing."""

import ml_collections
import pytest

from core.errors import UserError
from generative.ddap.methods import METHODS, Method, build, from_config


def test_the_defaults_are_the_budget_of_anti_dreambooth_in_both_units():
  method = build('ddap')
  assert method.epsilon == pytest.approx(0.05) and method.step == pytest.approx(0.005)
  assert (method.steps, method.outer, method.inner, method.surrogate_steps) == (300, 50, 6, 3)
  assert build('ddap', eps_levels=8).epsilon == pytest.approx(16 / 255)  # SimAC's 16/255 in -1..1 are 8 levels
  assert build('ddap', eps_levels=8).step == pytest.approx(1.6 / 255)


@pytest.mark.parametrize(
  'alternate,expected',
  [('inner', ['SFSF', 'SFSF', 'SFSF']), ('outer', ['SSSS', 'FFFF', 'SSSS']), ('blocks:3', ['SSSF', 'FFSS', 'SFFF'])],
)
def test_turns(alternate, expected):
  method = build('ddap', alternate=alternate, inner=4)
  assert [''.join('SF'[row[0]] for row in method.rows(i)) for i in range(3)] == expected


def test_every_other_inner_step_is_fpls_with_an_odd_number_too():
  assert [row[0] for row in build('ddap', inner=3).rows(1)] == [False, True, False]


def test_weights_of_the_losses():
  assert build('ddap', rec=2.0, lat=3.0, inner=2).rows(0) == [(False, 2.0, 3.0, 0.0), (True, 1.0, 0.0, 0.0)]
  assert build('ddap', frequency_loss='spl', inner=2).rows(0)[1] == (True, 1.0, 1.0, 0.0)
  assert build('mist').rows(0)[0] == (False, 1.0, -1.64, 0.0)  # nearer to the target, not away
  assert build('aspl').rows(0)[0] == (False, 1.0, 0.0, 0.0)


def test_what_each_method_needs():
  needs = {name: (method.unet, method.fits) for name, method in METHODS.items()}
  assert {name for name, (unet, _) in needs.items() if not unet} == {'random', 'latent', 'photoguard', 'fast'}
  assert {name for name, (_, fits) in needs.items() if fits} == {
    'aspl', 'fsmg', 'simac', 'simac_feature', 'spl', 'fpl', 'ddap'
  }  # fmt: skip
  assert build('spl', recon='decoder').unet is False and build('ddap', recon='decoder').unet is False
  assert build('fpl', rec=0.0).unet  # FPL raises L_rec whatever SPL's λ is


def test_methods_that_do_nothing_say_so():
  idle = ({'outer': 0}, {'inner': 0}, {'step_levels': 0.0}, {'eps_levels': 0}, {'rec': 0, 'lat': 0})
  assert all(build('spl', **each).idle for each in idle)
  assert not any(method.idle for method in METHODS.values())
  assert not build('random', outer=0).idle and build('random', eps_levels=0).idle


def test_a_name_with_mask_is_the_method_within_a_mask():
  assert build('spl+mask') == build('spl', masked=True) != build('spl')


def test_a_section_of_a_config_sets_fields_of_any_method():
  section = ml_collections.ConfigDict({'outer': 10, 'eps_levels': 12.75})
  assert from_config('fpl+mask', section) == build('fpl', outer=10, eps_levels=12.75, masked=True)


@pytest.mark.parametrize(
  'name,overrides,message',
  [
    ('dap', {}, "Did you mean 'ddap'"),
    ('ddap-mask', {}, 'with or without'),
    ('ddap', {'eps_level': 8}, "Did you mean 'eps_levels'"),
    ('ddap', {'latent': 'means'}, "Did you mean 'mean'"),
    ('ddap', {'alternate': 'blocks:0'}, 'blocks:K'),
    ('ddap', {'outside_levels': 7.0}, 'the smaller one'),
    ('ddap', {'k0': 15}, 'expected 0'),
    ('ddap', {'step_levels': -1}, 'or None'),
    ('ddap', {'frequency_t': 0.0}, 'share'),
    ('ddap', {'lat': -1}, 'expected 0 or more'),
  ],
)
def test_words_and_numbers_that_mean_nothing(name, overrides, message):
  with pytest.raises(UserError, match=message):
    build(name, **overrides)


def test_methods_are_values():
  assert hash(Method()) == hash(build('ddap'))
