"""What DDAP claims, and what we measured not to hold: `python -m launch.claims --system=generative.ddap`.

The table and the assertions of spec 9c, on drawn portraits (`mechanisms.py`): four new persons per seed, every seed
another world with models of its own. About the photos of real persons it says nothing.

On two cores two processes of one thread each are quicker than one of two, and may share a folder:

  taskset -c 0 python -m launch.claims --system=generative.ddap --only=P1,P4 &
  taskset -c 1 python -m launch.claims --system=generative.ddap --only=P6,P2
  wait; python -m launch.claims --system=generative.ddap
"""

from __future__ import annotations

from core.claims import Check, Claim, Experiment, NonClaim
from generative.ddap import mechanisms


def _method(name: str, control: str = '', transfer: bool = False, **changes) -> Experiment:
  given = {'method': name, 'changes': changes, 'control': control, 'transfer': transfer}
  return Experiment(mechanisms.measured, {key: value for key, value in given.items() if value})


_ALL = {
  'random': _method('random', transfer=True),
  'ASPL': _method('aspl'),
  'latent only': _method('latent'),
  'SPL': _method('spl', transfer=True),
  'FPL': _method('fpl'),
  'DDAP': _method('ddap', transfer=True),
  'ASPL + mask': _method('aspl+mask'),
  'SPL + mask': _method('spl+mask'),
  'DDAP + mask': _method('ddap+mask'),
  'SPL, sign flipped': _method('spl', 'sign flipped'),
  'SPL, no latent loss': _method('spl', lat=0.0),
  'FPL, every coefficient': _method('fpl', k0=0),
  'SPL + mask, mask ignored': _method('spl+mask', 'mask ignored'),
}


def _of(*names: str) -> dict[str, Experiment]:
  return {name: _ALL[name] for name in names}


P1 = Claim(
  'P1',
  'FPL spends its budget on detail (coefficients with u + v >= 4), SPL on texture, their alternation in between.',
  'spec 9c, assertion 1',
  _of('FPL', 'SPL', 'DDAP', 'random', 'FPL, every coefficient'),
  checks=[
    Check('FPL', 'hf_share', '>=', 0.90),
    Check('SPL', 'hf_share', '<=', 0.50),
    Check('DDAP', 'hf_share', '>=', 0.50),
    Check('DDAP', 'hf_share', '<=', 0.78),
    Check('random', 'hf_share', '>=', 0.824),
    Check('random', 'hf_share', '<=', 0.864),
  ],
  controls=[Check('FPL, every coefficient', 'hf_share', '>=', 0.90)],
)

P2 = Claim(
  'P2',
  'The latent loss moves the latents of the face further than the denoising loss alone, and far more than noise does.',
  'spec 9c, assertion 2',
  _of('SPL', 'ASPL', 'random', 'SPL, no latent loss'),
  checks=[
    Check('SPL', 'face_latent', '>=', 'ASPL', factor=1.15),
    Check('SPL', 'face_latent', '>=', 'random', factor=4),
  ],
  controls=[Check('SPL, no latent loss', 'face_latent', '>=', 'ASPL', factor=1.15)],
)

P3 = Claim(
  'P3',
  'An attacker learns far less of a face from photos that SPL, DDAP or ASPL protected than from those with random noise'
  ' of the same size; SPL costs him no less than ASPL.',
  'spec 9c, assertion 3',
  _of('SPL', 'DDAP', 'ASPL', 'random', 'SPL, sign flipped'),
  checks=[
    Check('SPL', 'R', '>=', 'random', margin=0.20),
    Check('DDAP', 'R', '>=', 'random', margin=0.20),
    Check('ASPL', 'R', '>=', 'random', margin=0.20),
    Check('SPL', 'R', '>=', 'ASPL', margin=-0.05),
  ],
  controls=[Check('SPL, sign flipped', 'R', '>=', 'random', margin=0.20)],
)

P4 = Claim(
  'P4',
  'Protection transfers: an attacker with a model that the protection never saw loses at least .6 as much.',
  'spec 9c, assertion 4',
  _of('SPL', 'DDAP', 'random'),
  checks=[Check('SPL', 'transfer_share', '>=', 0.6), Check('DDAP', 'transfer_share', '>=', 0.6)],
  controls=[Check('random', 'transfer_effect', '>=', 'SPL', factor=0.6)],
)

P5 = Claim(
  'P5',
  'What FPL changes in the decoded photo is finer than what SPL changes.',
  'spec 9c, assertion 5',
  _of('FPL', 'SPL', 'ASPL'),
  checks=[Check('FPL', 'decoded_hf_share', '>=', 'SPL', factor=1.2)],
  controls=[Check('ASPL', 'decoded_hf_share', '>=', 'SPL', factor=1.2)],
)

P6 = Claim(
  'P6',
  'A mask leaves the background as it is and buys 3 dB; within it, SPL costs the attacker more than ASPL.',
  'spec 9c, assertion 6, with the true mask of the drawn face',
  _of('SPL + mask', 'ASPL + mask', 'SPL', 'SPL + mask, mask ignored'),
  checks=[
    Check('SPL + mask', 'psnr', '>=', 'SPL', margin=3),
    Check('SPL + mask', 'outside', '<=', 0),
    Check('SPL + mask', 'R', '>=', 'ASPL + mask', margin=0.05),
  ],
  controls=[
    Check('SPL + mask, mask ignored', 'psnr', '>=', 'SPL', margin=3),
    Check('SPL + mask, mask ignored', 'outside', '<=', 0),
  ],
)

P7 = Claim(
  'P7',
  'The latent loss alone, with no U-Net in the attack, suppresses more than random noise: the preset fast needs it.',
  'spec 9c, row "L_lat only"',
  _of('latent only', 'random', 'DDAP + mask', 'SPL', 'DDAP'),
  checks=[Check('latent only', 'R', '>=', 'random', margin=0.20)],
  controls=[Check('random', 'R', '>=', 'latent only', factor=0.6)],
)
CLAIMS = [P1, P2, P3, P4, P5, P6, P7]

NON_CLAIMS = [
  NonClaim(
    'DDAP suppresses more than SPL alone.',
    'spec 9c: R .44 against .55',
    'P3',
    [Check('DDAP', 'R', '>=', 'SPL')],
    finding='FPL steps cost suppression in this world; they buy PSNR and move the change into detail.',
  ),
  NonClaim(
    'A mask keeps the suppression.',
    'spec 9c: R .23 of .55 with SPL',
    'P6',
    [Check('SPL + mask', 'R', '>=', 'SPL', factor=0.8)],
    finding='The mask buys visibility and pays with suppression.',
  ),
  NonClaim(
    'DDAP within a mask suppresses more than random noise everywhere.',
    'spec 9c: R .14 against .05, "report, do not gate"',
    'P7',
    [Check('DDAP + mask', 'R', '>=', 'random', margin=0.05)],
  ),
  NonClaim(
    'A protection survives filters, JPEG or regeneration.',
    'the evaluator "purification" of every run; README.md has the figures',
    finding='Whoever protects a photo cannot know what it will be put through.',
  ),
]
