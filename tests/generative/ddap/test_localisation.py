"""Localisation: DAAM's arithmetic in torch, planted attention, and every way a heat map becomes a mask."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_diffusion
from flax.traverse_util import unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from small_diffusion import PROMPT, pictures, tokenizer

import core.nn.diffusion
from core.data import clip_tokens, face, image
from core.data.image import from_levels
from core.diffusion.latent import normal
from core.errors import UserError
from core.nn import unet as unet_module
from core.nn.resize import bicubic
from core.weights import files, unet
from generative.ddap import localisation
from generative.ddap.localisation import Localiser

MODEL = dataclasses.replace(
  small_diffusion.MODEL, unet=small_diffusion.MODEL.unet.clone(channels=(8, 12), cross=(True, True), layers=1)
)
"""Of two levels: the heat of both is added up."""
params = functools.partial(small_diffusion.params, MODEL)
IDS = clip_tokens.prompts(tokenizer(), [PROMPT], MODEL.text.max_positions)
PERSON = (5, 6)
RAW = Localiser(dilate=0, block=1)
PASSES = 4


def keys(count):
  return jax.random.split(jax.random.key(7), count)


def heat(photos, places=PERSON, weights=None, key=None):
  weights = params() if weights is None else weights
  key = keys(len(photos)) if key is None else key
  return localisation._heat(MODEL, weights, from_levels(photos), IDS, key, places, PASSES)


def overlap(a, b):
  """Intersection over union."""
  return (a & b).sum() / (a | b).sum()


def disc(height, width, radius, centre=(0.5, 0.45)):
  """bool [height, width]; centre and radius as shares of the sides."""
  rows, columns = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
  return (rows[:, None] - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def blob(size=512, radius=0.25, centre=(0.5, 0.45)):
  """A smooth heat map f32 [size, size] in 0..1 whose threshold 0.4 lies at the radius."""
  rows = (np.arange(size) + 0.5) / size
  distance = (rows[:, None] - centre[0]) ** 2 + (rows - centre[1]) ** 2
  return np.exp(np.log(0.4) * distance / radius**2).astype(np.float32)


# Words and noise levels


def test_a_word_is_all_of_its_pieces_at_every_occurrence_behind_bos():
  pieces = functools.partial(localisation.pieces, tokenizer(), length=10)
  assert pieces(PROMPT, 'person') == PERSON and pieces(PROMPT, 'photo') == (2,)
  assert pieces('person of person', 'person') == (1, 2, 4, 5)
  assert pieces(PROMPT, 'sks person') == (4, 5, 6)
  assert [IDS[0, i] for i in PERSON] == tokenizer().encode('person')


def test_a_word_that_is_not_in_the_prompt_or_was_cut_off_is_refused():
  with pytest.raises(UserError, match="'man' is not in the prompt"):
    localisation.pieces(tokenizer(), PROMPT, 'man', 10)
  with pytest.raises(UserError, match="Did you mean 'photo'"):
    localisation.pieces(tokenizer(), PROMPT, 'foto', 10)
  with pytest.raises(UserError, match='first 4 pieces'):
    localisation.pieces(tokenizer(), PROMPT, 'person', 6)
  with pytest.raises(UserError, match="word ''"):
    localisation.pieces(tokenizer(), PROMPT, '', 10)


def test_the_noise_levels_are_those_of_the_specification():
  assert localisation.levels(1000, 10).tolist() == list(range(50, 1000, 100))
  assert localisation.levels(200, 10).tolist() == list(range(10, 200, 20))


# Heat


class Recorder:
  """A processor of diffusers that computes attention in the open and keeps what the prompt's gets, [B, heads, N, T]."""

  def __init__(self):
    self.seen = []

  def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
    import torch

    source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    query, key, value = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
    query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
    weights = torch.softmax(query @ key.transpose(2, 3) * query.shape[-1] ** -0.5, dim=-1)
    if encoder_hidden_states is not None:
      self.seen.append(weights)
    return attn.to_out[0]((weights @ value).transpose(1, 2).flatten(2))


def daam(model, noisy, times, context, places, size):
  """DAAM's word map over a photo, torch f32 [B, H, W]: `noisy` [passes, B, C, h, w], as castorini/daam computes it."""
  import torch
  from torch.nn.functional import interpolate

  recorders = {name: Recorder() for name in model.attn_processors}
  model.set_attn_processor(dict(recorders))
  with torch.no_grad():
    for x, t in zip(noisy, times):
      model(x, int(t), context)
  (height, width), merged = noisy[0].shape[2:], []
  for name, recorder in recorders.items():
    if 'attn2' not in name or name.startswith('mid_block'):
      continue
    assert len(recorder.seen) == len(times)
    total = sum(recorder.seen)
    scale = round((height * width / total.shape[2]) ** 0.5)
    for head in total.unbind(1):
      planes = head.transpose(1, 2).unflatten(2, (height // scale, width // scale))
      merged.append(interpolate(planes, size=(height, width), mode='bicubic').clamp_(min=0))
  word = torch.stack(merged).mean(0)[:, list(places)].mean(1, keepdim=True)
  word = interpolate(word, size=size, mode='bicubic')[:, 0]
  low, high = word.amin((1, 2), keepdim=True), word.amax((1, 2), keepdim=True)
  return (word - low) / (high - low + 1e-8)


def test_word_maps_equal_those_of_daam(tmp_path):
  torch, diffusers = pytest.importorskip('torch'), pytest.importorskip('diffusers')
  torch.manual_seed(0)
  theirs = diffusers.UNet2DConditionModel(
    block_out_channels=(8, 12), down_block_types=['CrossAttnDownBlock2D'] * 2,
    up_block_types=['CrossAttnUpBlock2D'] * 2, norm_num_groups=4, attention_head_dim=2, cross_attention_dim=8,
    layers_per_block=1,
  ).eval()  # fmt: skip
  with torch.no_grad():
    for parameter in theirs.parameters():
      parameter.add_(0.2 * torch.randn_like(parameter))
  theirs.save_pretrained(tmp_path)
  tensors = files.read(tmp_path)
  wanted = jax.eval_shape(MODEL.unet.init, jax.random.key(0), jnp.zeros((1, 8, 8, 4)), 0, jnp.zeros((1, 4, 8)))
  flat = {'/'.join(each.key for each in path): leaf for path, leaf in jax.tree.leaves_with_path(wanted['params'])}
  weights = {**params(), 'unet': unflatten_dict(unet.load(flat, tensors)[0], sep='/')}

  photos = pictures(2, 24, 32)
  latents = jax.jit(MODEL.latents)(weights, from_levels(photos))
  context = jax.jit(MODEL.context)(weights, IDS)
  times = localisation.levels(200, PASSES)
  noise = [normal(jax.vmap(lambda key: jax.random.fold_in(key, i))(keys(2)), latents.shape[1:]) for i in range(PASSES)]  # noqa: B023
  noisy = [MODEL.schedule.add_noise(latents, each, jnp.full(2, t)) for each, t in zip(noise, times)]
  noisy = [torch.tensor(np.moveaxis(np.asarray(each), -1, 1).copy()) for each in noisy]
  context = torch.tensor(np.asarray(context)).expand(2, -1, -1)
  expected = daam(theirs, noisy, times, context, PERSON, (24, 32)).numpy()

  raw = heat(photos, weights=weights)
  assert not localisation.is_flat(np.asarray(raw)).any()
  found = localisation._spread(raw, (24, 32))
  assert found.shape == (2, 24, 32) and np.abs(np.asarray(found) - expected).max() < 1e-3


def test_the_heat_of_a_photo_does_not_depend_on_the_others():
  photos, three = pictures(3, 24, 32, seed=3), keys(3)
  first, second = (np.asarray(heat(photos[i], key=three[i])) for i in (np.array([0, 1]), np.array([2, 1])))
  np.testing.assert_array_equal(first[1], second[1])
  assert np.abs(first[0] - second[0]).max() > 1e-3
  other_noise = np.asarray(heat(photos[:2], key=three[1:]))
  assert (other_noise[0] != first[0]).any()


def plant(monkeypatch, radius=0.3, place=5):
  """Lets every place of a disc attend to the prompt's `place`, and every other to the rest of the prompt."""

  def weights(query, key, *, mask=None):
    batch, count, heads, _ = query.shape
    side = round(count**0.5)
    inside = jnp.asarray(disc(side, side, radius).reshape(-1), jnp.float32)
    tokens = jax.nn.one_hot(jnp.array(place), key.shape[1])
    planted = inside[:, None] * tokens + (1 - inside)[:, None] * (1 - tokens) / (key.shape[1] - 1)
    return jnp.broadcast_to(planted, (batch, heads, *planted.shape))

  monkeypatch.setattr(core.nn.diffusion, 'attention_weights', weights)
  # A function of its own: the compiled ones do not know of the disc, and must not learn of it.
  run = lambda photos, places: localisation.heat_maps(MODEL, params(), photos, IDS, keys(1), places, 1)  # noqa: E731
  planted = jax.jit(lambda photos: [localisation.spread(run(photos, places), (64, 64)) for places in ((5,), (2,))])
  return [np.asarray(each) for each in planted(from_levels(pictures(1, 64, 64)))]


def test_planted_attention_is_found_and_only_for_its_word(monkeypatch):
  word, other = plant(monkeypatch)
  truth = disc(64, 64, 0.3)
  assert overlap(localisation.region(word[0], RAW), truth) > 0.9
  assert overlap(localisation.region(other[0], RAW), truth) < 0.1
  whole = localisation.region(word[0], Localiser(dilate=1, block=4))
  assert whole[truth].all() and overlap(whole, truth) > 0.7


def test_of_stable_diffusion_the_fifteen_attentions_of_daam_are_used():
  model = unet_module.build('sd2')
  inputs = jnp.zeros((1, 64, 64, 4)), jnp.zeros((1,), jnp.int32), jnp.zeros((1, 77, 1024))
  seen = jax.eval_shape(lambda key: model.init_with_output(key, *inputs, maps=True)[0][1], jax.random.key(0))
  used = {name: each.shape for name, each in seen.items() if localisation.is_fine(name)}
  assert len(seen) == 16 and len(used) == 15
  assert {name[: name.index('_transformer')] for name in used} == {'down_0', 'down_1', 'down_2', 'up_1', 'up_2', 'up_3'}
  assert sorted({shape[1:] for shape in used.values()}) == [(5, 64, 64, 77), (10, 32, 32, 77), (20, 16, 16, 77)]


def test_every_head_counts_alike_and_overshoots_are_cut_at_zero():
  """A level with three heads weighs three times one with one (SD 2.x has 5 to 20)."""
  fine, coarse = jnp.full((1, 1, 4, 4, 2), 5.0), jnp.full((1, 3, 2, 2, 2), 1.0)
  np.testing.assert_allclose(localisation.aggregate({'a': fine, 'b': coarse}, (4, 4)), np.full((1, 4, 4), 2), rtol=1e-6)
  peak = jnp.zeros((1, 1, 8, 8, 1)).at[0, 0, 4, 4].set(1)
  assert bicubic(peak, (32, 32)).min() < -0.01 and localisation.aggregate({'a': peak}, (32, 32)).min() == 0


# From heat to a mask


def test_a_mask_at_512_pixels_holds_the_region_and_little_more():
  truth, found = blob() > 0.4, localisation.region(blob(), Localiser())
  assert found[truth].all()
  assert found.sum() <= localisation.dilated(truth, 8 + 12).sum() < 1.4 * truth.sum()
  np.testing.assert_array_equal(found, localisation.snapped(localisation.dilated(truth, 8), 8))


def test_of_two_regions_the_larger_stays():
  both = np.maximum(blob(128, 0.2, (0.3, 0.3)), blob(128, 0.08, (0.8, 0.8)))
  np.testing.assert_array_equal(localisation.region(both, RAW), blob(128, 0.2, (0.3, 0.3)) > 0.4)
  diagonal = np.eye(4, dtype=bool)
  np.testing.assert_array_equal(localisation.largest(diagonal), diagonal)
  assert not localisation.largest(np.zeros((4, 4), bool)).any()


def test_dilation_is_a_disc_of_its_radius():
  point = np.zeros((21, 21), bool)
  point[10, 10] = True
  rows = np.arange(21) - 10
  np.testing.assert_array_equal(localisation.dilated(point, 8), rows[:, None] ** 2 + rows**2 <= 64)
  np.testing.assert_array_equal(localisation.dilated(point, 0), point)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(0, 1000))
def test_a_block_is_in_if_and_only_if_one_of_its_pixels_is(height, width, block, seed):
  mask = np.random.default_rng(seed).random((height, width)) < 0.03
  found = localisation.snapped(mask, block)
  for top in range(0, height, block):
    for left in range(0, width, block):
      area = slice(top, top + block), slice(left, left + block)
      assert (found[area] == mask[area].any()).all()


def test_regions_too_small_too_large_and_nowhere_take_the_whole_photo_and_say_so():
  small, large, good = blob(512, 0.02), blob(512, 0.75), blob()
  with pytest.warns(UserWarning) as told:
    found = localisation.from_heat(np.stack([small, large, good, good]), np.array([0, 0, 0, 1], bool), 'person', RAW)
  assert [each.min() for each in found.mask] == [1, 1, 0, 1] and found.mask.dtype == np.float32
  assert found.mask.shape == (4, 512, 512, 1)
  assert 'less than 2%' in found.outcomes[0] and 'more than 90%' in found.outcomes[1] and not found.outcomes[2]
  assert "no place attends to 'person'" in found.outcomes[3] and len(told) == 3 and 'photo 3' in str(told[2].message)
  assert found.shares[0] < 0.02 and found.shares[1] > 0.9 and found.shares[3] == 0
  assert found.mask[2, ..., 0].mean() == pytest.approx(found.shares[2]) == pytest.approx((good > 0.4).mean())


def test_a_heat_map_of_rounding_errors_points_nowhere():
  rng = np.random.default_rng(0)
  heat_map = np.stack([np.full((8, 8), 0.13) + 1e-7 * rng.random((8, 8)), 0.13 * rng.random((8, 8))])
  assert localisation.is_flat(heat_map.astype(np.float32)).tolist() == [True, False]


def test_localise_gives_hard_soft_and_whole_masks():
  photos = from_levels(pictures(2, 24, 32))
  run = functools.partial(localisation.localise, MODEL, params(), photos, tokenizer(), PROMPT, 'person', keys=keys(2))
  found = {kind: run(localiser=Localiser(kind, 0.7, 0, 2, PASSES)) for kind in localisation.KINDS}
  hard, soft, whole = (found[kind].mask for kind in localisation.KINDS)
  assert hard.shape == soft.shape == whole.shape == (2, 24, 32, 1)
  assert set(np.unique(hard)) == {0, 1} and not any(found['hard'].outcomes) and (whole == 1).all()
  np.testing.assert_array_equal(soft[..., 0], found['hard'].heat)
  assert hard[soft == 1].all() and soft.min() == 0 and 0.1 < soft.mean() < 0.9
  np.testing.assert_array_equal(hard[0, ..., 0], localisation.region(soft[0, ..., 0], Localiser('hard', 0.7, 0, 2)))


def test_a_face_of_a_real_photo_keeps_its_mask(shared_data):
  """Heat on the 64 x 64 latents of a photo of 512 pixels, where OpenCV finds the face, comes back as its region."""
  paths = sorted((shared_data / 'faces_n000050' / 'set_B').glob('*.png'))
  boxes = [face.HaarDetector().detect(image.read(path))[0].box for path in paths]
  heat_map, inside = np.zeros((len(boxes), 64, 64), np.float32), np.zeros((len(boxes), 512, 512), bool)
  places = 8 * np.arange(64) + 4
  for i, (x, y, width, height) in enumerate(boxes):
    across, down = (places - x - width / 2) / width, (places - y - height / 2) / height
    heat_map[i] = 0.1 + np.exp(-4 * (across**2 + down[:, None] ** 2))
    rows, columns = np.mgrid[:512, :512]
    inside[i] = np.maximum(abs(columns - x - width / 2) / width, abs(rows - y - height / 2) / height) < 0.3
  over = np.asarray(localisation._spread(heat_map, (512, 512)))
  found = localisation.from_heat(over, localisation.is_flat(heat_map), 'person', Localiser())
  assert len(boxes) == 4 and not any(found.outcomes) and (found.mask[inside] == 1).all()
  assert (found.mask.reshape(4, 64, 8, 64, 8).std((2, 4)) == 0).all() and (found.shares < 0.8).all()


def test_a_mask_of_the_user_is_taken_as_it_is():
  picture = np.zeros((6, 8, 3), np.uint8)
  picture[2:4, 3] = 255
  mask = localisation.from_picture(picture, (6, 8), 'me.png')
  assert mask.shape == (6, 8, 1) and mask.sum() == 2 and mask[2, 3] == 1 and mask.dtype == np.float32
  with pytest.raises(UserError, match='me.png has 8x6 pixels, its photo 9x6'):
    localisation.from_picture(picture, (6, 9), 'me.png')
  with pytest.raises(UserError, match='black everywhere'):
    localisation.from_picture(np.zeros_like(picture), (6, 8), 'me.png')


def test_settings_that_make_no_mask_are_refused_and_a_config_section_makes_a_localiser():
  with pytest.raises(UserError, match="Did you mean 'hard'"):
    Localiser('hart')
  for wrong in ({'threshold': 1.0}, {'dilate': -1}, {'block': 0}, {'passes': 0}):
    with pytest.raises(UserError, match=f'{next(iter(wrong))} {next(iter(wrong.values()))}'):
      Localiser(**wrong)
  section = {'kind': 'soft', 'threshold': 0.5, 'dilate': 1, 'block': 4, 'passes': 2}
  assert localisation.from_config(section) == Localiser(**section)
  with pytest.raises(UserError, match='in its middle only'):
    localisation.aggregate({}, (8, 8))
