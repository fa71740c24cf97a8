"""Colour of cameras and of prints: RGB profiles, parametric inks, baked ICC tables (spec 3.1, operators 0 and 1).

Pictures are f32 [H, W, 3] in [0, 1]. Inside, colour is worked on in planes [3, H * W]: the 3x3 matrices are then plain
matrix products, several times faster on a CPU than products over a last axis of 3.

Nothing here is meant to be differentiated: `power` reads the bits of its argument.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.polynomial import Chebyshev, Polynomial

from core.errors import UserError
from fas.fas_aug.staging import stage

_SRGB = 0.0  # stands for the piecewise curve of IEC 61966-2-1 in the table below

_PROFILES = {
  # name: red X Y Z, green X Y Z, blue X Y Z (colorants, D50 connection space; the spec's, one digit more), exponent
  'adobe_rgb_1998': ('.60974 .31111 .01947  .20528 .62567 .06087  .14919 .06322 .74457', 2.1992),
  'apple_rgb': ('.47554 .25516 .01845  .33972 .67259 .11333  .14896 .07225 .69312', 1.8008),
  'colormatch_rgb': ('.50945 .27495 .02426  .32085 .65810 .10875  .13391 .06697 .69189', 1.8008),
  'srgb': ('.43607 .22249 .01392  .38515 .71687 .09708  .14307 .06061 .71410', _SRGB),
  'cie_rgb': ('.43382 .15884 -.00156  .35556 .84207 .01761  .17482 -.00090 .80885', 2.1992),
  'prophoto': ('.79752 .28799 .00002  .13525 .71188 -.00003  .03143 .00012 .82494', 1.7969),
  'prophoto_d65': ('.81534 .29897 -.00291  .16013 .71828 .00957  -.01125 -.01723 .81827', 1.7969),
  'srgb_gamma22': ('.43585 .22238 .01392  .38533 .71704 .09712  .14302 .06059 .71385', 2.1992),
  'max_rgb': ('.85629 .31030 0  .07660 .68962 .00002  .03131 .00008 .82487', 2.1992),
  'don_rgb_4': ('.64584 .27838 .00371  .19331 .68796 .01799  .12505 .03366 .80321', 2.1992),
  'best_rgb': ('.63274 .22847 0  .20451 .73735 .00952  .12694 .03418 .81538', 2.1992),
}

PROFILES = tuple(_PROFILES)
"""The 11 camera profiles of the release, in the spec's order."""

TO_XYZ = np.stack([np.array(text.split(), float).reshape(3, 3).T for text, _ in _PROFILES.values()])
"""[11, 3, 3] linear RGB -> XYZ (D50); the columns are the colorants."""

BETWEEN = np.einsum('bij,ajk->abik', np.linalg.inv(TO_XYZ), TO_XYZ).astype(np.float32)
"""[11, 11, 3, 3]: BETWEEN[a, b] takes linear RGB of profile a to linear RGB of profile b."""

# Every curve as linear = slope * x below the toe, ((x + offset) / (1 + offset)) ** exponent above it.
_CURVES = np.array(
  [(2.4, 0.055, 0.04045, 1 / 12.92) if e == _SRGB else (e, 0.0, 0.0, 1.0) for _, e in _PROFILES.values()], np.float32
)

_SRGB_INDEX = PROFILES.index('srgb')

_INKS = {
  # name: weight, Yule-Nielsen n, dot gain g, then the sRGB colour (8 bit) of the overprints K B G C R M Y, where
  # B is cyan over magenta, G cyan over yellow, R magenta over yellow, K all three
  'euroscale_coated': (1, 1.5, 0.05, '47 43 34  46 29 134  0 152 54  0 166 235  230 0 4  229 0 131  255 237 0'),
  'euroscale_uncoated': (1, 1.5, 0.10, '77 59 61  87 64 142  0 169 78  0 185 243  228 33 48  232 42 140  255 240 13'),
  'japan_standard': (1, 1.5, 0.0, '9 15 14  0 11 122  0 152 37  0 163 231  239 0 0  240 0 130  255 245 0'),
  'us_sheetfed_coated': (1, 2.0, 0.05, '54 31 37  52 28 121  0 151 64  0 163 230  222 37 22  227 33 126  255 237 0'),
  'us_uncoated': (2, 1.5, 0.10, '49 43 62  51 42 113  0 148 79  0 162 227  215 23 47  220 24 111  255 236 0'),
  'us_web_coated': (1, 1.5, 0.05, '54 54 57  46 48 146  0 166 80  0 174 239  237 28 36  236 0 140  255 242 0'),
}

INKS = tuple(_INKS)
"""The distinct inks of the release's seven CMYK profiles: the two uncoated US ones agree without black, count twice."""

_COVERAGE = {
  'K': (1, 1, 1),
  'B': (1, 1, 0),
  'G': (1, 0, 1),
  'C': (1, 0, 0),
  'R': (0, 1, 1),
  'M': (0, 1, 0),
  'Y': (0, 0, 1),
}


def _log2_fit() -> np.ndarray:
  """log2 on [1, 2] as a polynomial in m - 1; its error is 4e-7."""
  return Chebyshev.interpolate(lambda t: np.log2(1 + t), 8, domain=[0, 1]).convert(kind=Polynomial).coef


def _exp2_fit() -> np.ndarray:
  """2 ** f on [0, 1]; its error is 2e-7."""
  return Chebyshev.interpolate(np.exp2, 5, domain=[0, 1]).convert(kind=Polynomial).coef


_LOG2, _EXP2 = _log2_fit(), _exp2_fit()


def _polynomial(coefficients: Sequence[float], x: jax.Array) -> jax.Array:
  value = jnp.full_like(x, coefficients[-1])
  for c in coefficients[-2::-1]:
    value = value * x + np.float32(c)
  return value


def power(x: jax.Array, exponent: jax.Array) -> jax.Array:
  """x ** exponent for x >= 0 and exponent > 0, to a relative error of 1e-6.

  Two short polynomials on the mantissa in place of the library's function, which takes ten times as long on a CPU.
  """
  bits = lax.bitcast_convert_type(x, jnp.int32)
  whole = ((bits >> 23) - 127).astype(jnp.float32)
  mantissa = lax.bitcast_convert_type((bits & 0x7FFFFF) | 0x3F800000, jnp.float32)
  log = jnp.maximum(exponent * (whole + _polynomial(_LOG2, mantissa - 1)), -126)  # 0 has the least log, and gives 1e-38
  floor = jnp.floor(log)
  scale = lax.bitcast_convert_type((floor.astype(jnp.int32) + 127) << 23, jnp.float32)
  return scale * _polynomial(_EXP2, log - floor)


def decode(x: jax.Array, profile: jax.Array | int) -> jax.Array:
  """Picture values in [0, 1] of a profile (index into `PROFILES`, may be traced) -> linear light in [0, 1]."""
  exponent, offset, toe, slope = jnp.asarray(_CURVES)[profile]
  return jnp.where(x < toe, slope * x, power((x + offset) / (1 + offset), exponent))


def encode(linear: jax.Array, profile: jax.Array | int) -> jax.Array:
  """Linear light, clipped to [0, 1], -> picture values of a profile in [0, 1]."""
  exponent, offset, toe, slope = jnp.asarray(_CURVES)[profile]
  linear = jnp.clip(linear, 0, 1)
  return jnp.where(linear < toe * slope, linear / slope, (1 + offset) * power(linear, 1 / exponent) - offset)


def to_planes(image: jax.Array) -> jax.Array:
  """[H, W, 3] -> [3, H * W]."""
  return stage(lambda x: jnp.moveaxis(x, 2, 0).reshape(3, -1), image)


def from_planes(planes: jax.Array, shape: Sequence[int]) -> jax.Array:
  """[3, H * W] -> [H, W, 3] of `shape`."""
  return jnp.moveaxis(planes.reshape(3, *shape[:2]), 0, 2)


def convert(image: jax.Array, source: jax.Array | int, target: jax.Array | int) -> jax.Array:
  """The colours of [H, W, 3] in profile `source`, expressed in profile `target` (indices, may be traced).

  lin = decode_A(x); out = encode_B(clip(inv(M_B) M_A lin, 0, 1)): what a colour management system does with two
  matrix profiles, without black-point compensation.
  """
  linear = jnp.asarray(BETWEEN)[source, target] @ stage(decode, to_planes(image), source)
  return from_planes(stage(encode, linear, target), image.shape)


class _InkTable(NamedTuple):
  features: np.ndarray  # f32 [6, 3, 8]: P ** (1/n) as a polynomial in c m y: 1 c m y cm cy my cmy
  n: np.ndarray  # f32 [6]
  gain: np.ndarray  # f32 [6]
  cumulative: np.ndarray  # f32 [6], of the weights


def _linear_srgb(value: np.ndarray) -> np.ndarray:
  """8-bit sRGB -> linear light, in float64."""
  x = value / 255
  return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def _ink_table() -> _InkTable:
  """The Neugebauer corners, expanded: sum_i w_i P_i over the 8 corners is a trilinear polynomial of the coverages."""
  tables, weights, ns, gains = [], [], [], []
  for weight, n, gain, text in _INKS.values():
    corner = np.ones((2, 2, 2, 3))
    for at, rgb in zip(_COVERAGE.values(), np.array(text.split(), float).reshape(7, 3), strict=True):
      corner[at] = _linear_srgb(rgb) ** (1 / n)
    for axis in range(3):  # values at 0 and 1 -> constant and slope
      low, high = np.split(corner, 2, axis)
      corner = np.concatenate([low, high - low], axis)
    order = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)]
    tables.append(np.stack([corner[at] for at in order], 1))
    weights.append(weight), ns.append(n), gains.append(gain)
  cumulative = np.cumsum(weights) / np.sum(weights)
  return _InkTable(*(np.asarray(a, np.float32) for a in (np.stack(tables), ns, gains, cumulative)))


_INK = _ink_table()


def draw_ink(uniform: jax.Array) -> jax.Array:
  """Index into `INKS` from a number in [0, 1), by the inks' weights."""
  return jnp.sum(uniform >= jnp.asarray(_INK.cumulative[:-1]))


def printed(image: jax.Array, ink: jax.Array | int, target: jax.Array | int) -> jax.Array:
  """[H, W, 3] (sRGB) printed in `ink` (index into `INKS`), seen in profile `target`: Yule-Nielsen-Neugebauer.

  Coverage c = 1 - x, dot gain c' = clip(c + 4 g c (1 - c)), lin = (sum_i w_i P_i^(1/n))^n over the 8 overprints
  (Demichel weights w_i), then the target's matrix and curve. Parameters: spec, fitted to the public profiles (mean
  error 3.3 to 8.2 of 255); the profiles themselves may not be redistributed.
  """
  gain, n = jnp.asarray(_INK.gain)[ink], jnp.asarray(_INK.n)[ink]
  table = jnp.asarray(_INK.features)[ink][:, :, None]

  def reflected(covered):
    c, m, y = covered
    root = (
      (table[:, 0] + table[:, 1] * c)
      + (table[:, 2] + table[:, 4] * c) * m
      + ((table[:, 3] + table[:, 5] * c) + (table[:, 6] + table[:, 7] * c) * m) * y
    )
    root = jnp.maximum(root, 0)
    return root * jnp.where(n == 2, root, jnp.sqrt(root))  # n is 1.5 or 2

  covered = stage(lambda x: jnp.clip((1 - x) * (1 + 4 * gain * x), 0, 1), to_planes(image))
  linear = jnp.asarray(BETWEEN[_SRGB_INDEX])[target] @ stage(reflected, covered)
  return from_planes(stage(encode, linear, target), image.shape)


# The exact back-end: tables baked from a user's ICC profiles.

NODES = 17
"""Nodes per axis of a baked table: against LittleCMS its trilinear interpolation errs by 0.3 of 255 on average."""

CMYK_FILES = (
  'EuroscaleCoated',
  'EuroscaleUncoated',
  'JapanStandard',
  'USSheetfedCoated',
  'USSheetfedUncoated',
  'USWebCoated',
  'USWebUncoated',
)
RGB_FILES = (
  'AdobeRGB1998',
  'AppleRGB',
  'ColorMatchRGB',
  'sRGB2014',
  'CIERGB',
  'ProPhoto',
  'ProPhotoD65',
  'sRGB Gamma22',
  'MaxRGB',
  'DonRGB4',
  'BestRGB',
)
"""Names of the release's profiles: in a folder that holds some of them, the others are left out."""


def bake(source: object, target: object, mode: str = 'CMYK') -> np.ndarray:
  """The conversion between two Pillow ICC profiles as a table uint8 [17, 17, 17, 3] over RGB, perceptual intent.

  Args:
    source: profile of the inks; with mode 'CMYK', RGB is first taken naively to C, M, Y = 1 - R, G, B and K = 0 (spec).
    target: an RGB profile.
    mode: 'CMYK', or 'RGB' for a source profile that is itself RGB.
  """
  from PIL import Image, ImageCms

  axis = np.rint(np.linspace(0, 255, NODES)).astype(np.uint8)
  rgb = np.stack(np.meshgrid(axis, axis, axis, indexing='ij'), -1).reshape(NODES, NODES * NODES, 3)
  picture = Image.fromarray(rgb)
  if mode == 'CMYK':
    picture = Image.merge('CMYK', [*Image.fromarray(255 - rgb).split(), Image.new('L', picture.size, 0)])
  transform = ImageCms.buildTransform(source, target, mode, 'RGB', ImageCms.Intent.PERCEPTUAL)
  return np.asarray(ImageCms.applyTransform(picture, transform)).reshape(NODES, NODES, NODES, 3)


def bake_icc(cmyk_dir: str | pathlib.Path, rgb_dir: str | pathlib.Path) -> np.ndarray:
  """Tables uint8 [inks, spaces, 17, 17, 17, 3] of all pairs of CMYK and RGB profiles in two folders (1 MB for 7 x 11).

  In the release's own folders its 7 and 11 profiles are taken; in folders of other profiles, all of them.
  """
  inks, spaces = profiles_in(cmyk_dir, 'CMYK', CMYK_FILES), profiles_in(rgb_dir, 'RGB', RGB_FILES)
  return np.stack([[bake(ink, space) for space in spaces.values()] for ink in inks.values()])


def profiles_in(folder: str | pathlib.Path, space: str, preferred: Sequence[str] = ()) -> dict[str, object]:
  """{file stem: opened Pillow ICC profile} of a folder, sorted; of the `preferred` stems alone, if any is there."""
  from PIL import ImageCms

  folder = pathlib.Path(folder).expanduser()
  files = sorted(p for p in folder.glob('*') if p.suffix.lower() in ('.icc', '.icm'))
  files = [p for p in files if p.stem in preferred] or files
  if not files:
    raise UserError(f"No ICC profiles (.icc, .icm) in '{folder}'; name the folder that holds the {space} profiles.")
  opened = {p.stem: ImageCms.getOpenProfile(str(p)) for p in files}
  for stem, profile in opened.items():
    if profile.profile.xcolor_space.strip() != space:
      raise UserError(
        f"'{stem}' in '{folder}' is a profile of {profile.profile.xcolor_space.strip()}, expected {space}; "
        'CMYK and RGB profiles go into folders of their own.'
      )
  return opened


def look_up(image: jax.Array, table: jax.Array) -> jax.Array:
  """Trilinear interpolation of [H, W, 3] in [0, 1] in a table [17, 17, 17, 3] (uint8 or f32 in 0..255) -> [H, W, 3]."""
  flat = table.reshape(-1, 3)
  place = to_planes(image) * (NODES - 1)
  cell = jnp.minimum(place.astype(jnp.int32), NODES - 2)
  high = place - cell
  base = (cell[0] * NODES + cell[1]) * NODES + cell[2]
  total = 0.0
  for corner in np.ndindex(2, 2, 2):
    weight = jnp.prod(jnp.stack([high[i] if c else 1 - high[i] for i, c in enumerate(corner)]), 0)
    step = (corner[0] * NODES + corner[1]) * NODES + corner[2]
    total += weight[:, None] * flat[base + step].astype(jnp.float32)
  return (total / 255).reshape(image.shape)
