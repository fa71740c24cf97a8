"""What the face world promises: the same face for the same key, landmarks on features, physics in the attacks."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from core.synth import faces
from core.synth.faces import anatomy, attacks, camera, dataset, domains, params
from core.synth.faces.painter import render

SIZE = 64
COUNT = 8


@pytest.fixture(scope='module')
def scenes():
  """Eight bare-eyed, long-foreheaded people who face the camera under an even light."""
  drawn = jax.jit(jax.vmap(params.sample_face))(jax.random.split(jax.random.key(0), COUNT))
  identity = drawn.identity.replace(
    glasses=jnp.zeros(COUNT),
    fringe=jnp.zeros(COUNT),
    hairline=jnp.full(COUNT, -0.65),
    beard=jnp.zeros(COUNT),
    moustache=jnp.zeros(COUNT),
    moles=drawn.identity.moles * 0.0,
  )
  expression = drawn.expression.replace(expression=jnp.zeros(COUNT, jnp.int32), gaze=jnp.zeros((COUNT, 2)))
  light = drawn.light.replace(
    direction=jnp.tile(jnp.array([0.0, -0.2, 0.98]), (COUNT, 1)),
    color=jnp.full((COUNT, 3), 0.8),
    ambient=jnp.full((COUNT, 3), 0.4),
    softness=jnp.ones(COUNT),
  )
  return drawn.replace(identity=identity, expression=expression, light=light)


@pytest.fixture(scope='module')
def draw_scene():
  """`render` of a batch at SIZE, compiled once for the file."""
  return jax.jit(jax.vmap(lambda p: render(p, SIZE)))


@pytest.fixture(scope='module')
def frames():
  """kind -> a batch of frames of one domain."""
  config = dataset.Config(size=SIZE, subjects=COUNT, frames_per_video=1, videos=(1, 1, 1), batch=COUNT)
  return {name: list(faces.examples(name, 'train', config, 3)) for name in ('phone', 'laptop')}


def picked(examples, attack):
  """Images f32 [N, S, S, 3] of one attack type."""
  return np.stack([e['image'] for _, e in examples if e['attack'] == attack]) / np.float32(255)


def at(image, points):
  """Mean colour of the 2x2 pixels around sub-pixel points [N, 2]."""
  x, y = np.floor(np.asarray(points)).astype(int).T
  return np.mean([image[y, x], image[y + 1, x], image[y, x + 1], image[y + 1, x + 1]], 0)


def eye_centres(points):
  """Centres [2, 2] of the two eyes from landmarks [68, 2]."""
  return np.stack([points[36:42].mean(0), points[42:48].mean(0)])


def test_render_gives_light_in_range_and_68_points(scenes, draw_scene):
  image, points = draw_scene(scenes)
  assert image.shape == (COUNT, SIZE, SIZE, 3) and image.dtype == jnp.float32
  assert points.shape == (COUNT, 68, 2) and points.dtype == jnp.float32
  assert float(image.min()) >= 0 and float(image.max()) <= 1 and np.isfinite(points).all()
  assert float(image.std()) > 0.05


def test_vmap_is_a_loop_and_jit_changes_nothing(scenes, draw_scene):
  image, points = draw_scene(scenes)
  one = jax.tree.map(lambda leaf: leaf[3], scenes)
  with jax.disable_jit():
    alone, marks = render(one, SIZE)
  np.testing.assert_allclose(alone, image[3], atol=2e-3)
  np.testing.assert_allclose(marks, points[3], atol=1e-3)


def test_a_larger_picture_is_the_same_picture(scenes, draw_scene):
  image, points = draw_scene(scenes)
  one = jax.tree.map(lambda leaf: leaf[:2], scenes)
  large, marks = jax.jit(jax.vmap(lambda p: render(p, 2 * SIZE)))(one)
  shrunk = np.asarray(large).reshape(2, SIZE, 2, SIZE, 2, 3).mean((2, 4))
  assert np.abs(shrunk - image[:2]).mean() < 0.01
  np.testing.assert_allclose((marks + 0.5) / 2 - 0.5, points[:2], atol=1e-3)


def test_an_identity_is_its_key_and_nothing_else():
  one, same, other = (params.sample_identity(jax.random.key(k)) for k in (1, 1, 2))
  jax.tree.map(np.testing.assert_array_equal, one, same)
  differs = [bool(np.any(a != b)) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)]
  assert np.mean(differs) > 0.7


def test_pupils_are_dark_where_the_landmarks_say_and_move_with_the_pose(scenes, draw_scene):
  places = []
  for yaw, pitch, roll in ((0.0, 0.0, 0.0), (0.3, 0.1, 0.15)):
    ones = jnp.ones(COUNT)
    pose = scenes.pose.replace(yaw=yaw * ones, pitch=pitch * ones, roll=roll * ones)
    images, points = map(np.asarray, draw_scene(scenes.replace(pose=pose)))
    eyes = np.stack([eye_centres(p) for p in points])
    pupil = np.stack([at(i, e) for i, e in zip(images, eyes, strict=True)]).mean(-1)
    # Beside the iris, within the eye: the white, half way to the corners.
    corner = np.stack([at(i, p[[36, 45]] * 0.72 + e * 0.28) for i, p, e in zip(images, points, eyes, strict=True)])
    assert (pupil < 0.7 * corner.mean(-1)).mean() > 0.85, (pupil, corner.mean(-1))
    places.append(eyes)
  assert np.abs(places[1] - places[0]).mean() > 3.0


def test_lips_brows_and_jaw_lie_under_their_landmarks(scenes, draw_scene):
  pose = jax.tree.map(jnp.zeros_like, scenes.pose).replace(scale=jnp.ones(COUNT), y=jnp.full(COUNT, -0.1))
  images, points = map(np.asarray, draw_scene(scenes.replace(pose=pose)))
  for image, p, identity_height in zip(images, points, np.asarray(scenes.identity.height), strict=True):
    chin_y = (identity_height - 0.1 + 1.0) * SIZE / 2 - 0.5
    assert abs(p[8, 1] - chin_y) < 1.5 and abs(p[8, 0] - (SIZE - 1) / 2) < 0.5
    assert (np.diff(p[:17, 0]) > 0).all() and (p[17:27, 1] < p[36:48, 1].min()).all()
    cheek = at(image, [(p[3] + p[33]) / 2, (p[13] + p[33]) / 2]).mean(0)
    lip = at(image, [(p[57] + p[66]) / 2]).mean(0)
    assert lip[1] / lip[0] < cheek[1] / cheek[0]  # lips are redder than cheeks
  brow = np.stack([at(i, p[[18, 19, 24, 25]]).mean() for i, p in zip(images, points, strict=True)])
  above = np.stack([at(i, p[[19, 24]] - [0, 5]).mean() for i, p in zip(images, points, strict=True)])
  assert (brow < above).mean() > 0.8


def test_a_blink_closes_the_eye(scenes, draw_scene):
  closed = scenes.replace(expression=scenes.expression.replace(blink=jnp.ones(COUNT)))
  open_image, open_points = map(np.asarray, draw_scene(scenes))
  image, points = map(np.asarray, draw_scene(closed))
  height = lambda p: (p[:, [40, 41, 46, 47], 1] - p[:, [38, 37, 44, 43], 1]).mean()  # noqa: E731
  assert height(points) < 0.1 * height(open_points)
  changed = np.abs(image - open_image).mean((0, 3))
  eyes = eye_centres(open_points.mean(0)).astype(int)
  assert changed[eyes[:, 1], eyes[:, 0]].min() > 5 * changed.mean()


def test_expressions_move_the_right_parts(scenes, draw_scene):
  def track(name):
    kind = jnp.full(COUNT, params.EXPRESSIONS.index(name), jnp.int32)
    expression = scenes.expression.replace(expression=kind, intensity=jnp.ones(COUNT))
    return np.asarray(jax.vmap(lambda p: anatomy.landmarks(p, SIZE))(scenes.replace(expression=expression))).mean(0)

  neutral, happy, sad, surprised, angry = map(track, ('neutral', 'happiness', 'sadness', 'surprise', 'anger'))
  corners = lambda p: p[[48, 54], 1].mean() - p[[51, 57], 1].mean()  # noqa: E731
  assert corners(happy) < corners(neutral) < corners(sad)
  assert surprised[66, 1] - surprised[62, 1] > 3 * (neutral[66, 1] - neutral[62, 1]) + 1
  assert surprised[19, 1] < neutral[19, 1] and angry[22, 0] - angry[21, 0] < neutral[22, 0] - neutral[21, 0]


def test_examples_have_the_shared_form(frames):
  key, example = frames['phone'][0]
  assert key == 'phone/train-0000-live-0/0000'
  assert example['image'].shape == (SIZE, SIZE, 3) and example['image'].dtype == np.uint8
  assert example['landmarks'].shape == (68, 2) and example['landmarks'].dtype == np.float32
  assert {'label', 'attack', 'domain', 'subject', 'video', 'frame', 'frames_total', 'info'} < set(example)
  assert len({k for k, _ in frames['phone']}) == len(frames['phone']) == 3 * COUNT
  assert [e['label'] for _, e in frames['phone']] == [1] * COUNT + [0] * 2 * COUNT
  for _, e in frames['phone']:
    info = json.loads(e['info'])
    assert info['expression']['name'] in params.EXPRESSIONS and 0 < info['camera']['noise'] < 1
    assert ('medium' in info) == ('first_camera' in info) == (e['label'] == 0)
  assert 'lamps' in json.loads(frames['phone'][-1][1]['info'])['medium']


def test_examples_depend_on_seed_and_index_only():
  config = dataset.Config(size=SIZE, subjects=3, frames_per_video=2, videos=(1, 0, 1), batch=COUNT)
  one, again = (list(faces.examples('dslr', 'val', config, 7)) for _ in range(2))
  for (key, a), (other, b) in zip(one, again, strict=True):
    assert key == other and a['info'] == b['info']
    np.testing.assert_array_equal(a['image'], b['image'])
  # A smaller world is a part of the larger one, whatever shares its batch.
  part = dict(faces.examples('dslr', 'val', dataclasses.replace(config, subjects=2), 7))
  for key, example in one:
    if key in part:
      assert np.abs(part[key]['image'].astype(int) - example['image']).mean() < 0.5
  assert len(part) == 8
  different = list(faces.examples('dslr', 'val', config, 8))
  assert np.abs(different[0][1]['image'].astype(int) - one[0][1]['image']).mean() > 5


def test_people_are_shared_over_domains_only_when_asked():
  def identities(shared):
    config = dataset.Config(size=32, subjects=2, shared_subjects=shared)
    rows = {d: dataset._plan(d, 'train', config) for d in ('phone', 'dslr')}
    return [{(r.subject, r.identity) for r in rows[d]} for d in rows]

  one, two = identities(True)
  assert one == two and len(one) == 2
  one, two = identities(False)
  assert not one & two
  splits = [
    {r.subject for r in dataset._plan('phone', s, dataset.Config(shared_subjects=True))} for s in dataset.SPLITS
  ]
  assert not splits[0] & splits[1] and not splits[1] & splits[2]


def spectrum(images):
  """Mean power of green beyond half the Nyquist frequency [N], and in 16 rings of radius [N, 16].

  Of green, because the stripes of a screen's three colours fill each other's gaps in the luminance.
  """
  grey = images[..., 1] - images[..., 1].mean((1, 2))[:, None, None]
  window = np.hanning(SIZE)[:, None] * np.hanning(SIZE)
  power = np.abs(np.fft.fftshift(np.fft.fft2(grey * window), axes=(1, 2))) ** 2
  radius = np.hypot(*np.mgrid[-SIZE // 2 : SIZE // 2, -SIZE // 2 : SIZE // 2])
  rings = [power[:, (radius >= 2 * r) & (radius < 2 * r + 2)].mean(1) for r in range(16)]
  return power[:, radius > SIZE / 4].mean(1), np.stack(rings, -1)


@pytest.mark.parametrize('domain', ['laptop', 'dslr'])
def test_prints_and_screens_leave_traces_in_the_spectrum(domain):
  """The same scenes through the same cameras, live and presented, with and without the medium's texture."""
  keys = jax.random.split(jax.random.key(5), COUNT)
  index = np.zeros(COUNT, np.int32)
  ranges = domains.get(domain).ranges()
  drawn = dataset.frames('print', SIZE, keys, keys, index, index.astype(np.float32), ranges).capture
  none = jnp.zeros(COUNT)
  smooth = drawn.replace(printer=drawn.printer.replace(dots=none), screen=drawn.screen.replace(lattice=none))
  later = drawn.replace(noise=jax.vmap(jax.random.fold_in, (0, None))(drawn.noise, 9))

  def shot(kind, capture):
    return spectrum(np.asarray(dataset.present(kind, SIZE, capture).image))

  _, live = shot('live', drawn)
  _, again = shot('live', later)
  noise_distance = np.abs(np.log(live / again)).mean(1)
  for kind in ('print', 'replay'):
    energy, rings = shot(kind, drawn)
    without, _ = shot(kind, smooth)
    assert np.median(energy / without) > 1.3, kind
    assert np.median(np.abs(np.log(rings / live)).mean(1) / noise_distance) > 3, kind


def test_domains_differ_in_colour_and_noise(frames):
  laptop, phone = (picked(frames[name], 0) for name in ('laptop', 'phone'))
  warmth = lambda images: (images[..., 0] / (images[..., 2] + 0.05)).mean()  # noqa: E731
  assert warmth(phone) > 1.15 * warmth(laptop)
  saturation = lambda images: (images.max(-1) - images.min(-1)).mean()  # noqa: E731
  assert saturation(phone) > 1.3 * saturation(laptop)


@pytest.mark.parametrize('part', ['camera', 'light', 'printer', 'screen'])
def test_every_two_domains_differ_in_every_part_of_the_capture(part):
  ranges = {name: np.asarray(getattr(domain.ranges(), part)) for name, domain in domains.DOMAINS.items()}
  for one, two in itertools.combinations(ranges, 2):
    (low, high), (other_low, other_high) = ranges[one], ranges[two]
    # 1: the two ranges touch, 0: they have one centre.
    distance = np.abs(low + high - other_low - other_high) / (high - low + other_high - other_low)
    assert distance.max() > (0.5 if part == 'light' else 1), (one, two)


def plain_print(**changes):
  """A printer that does nothing but ink."""
  values = dict.fromkeys((f.name for f in dataclasses.fields(attacks.PrintParams)), 0.0)
  values |= {'pitch': 4.0, 'ink': 0.8, 'paper': jnp.ones(3), 'slope': jnp.zeros(2)} | changes
  return attacks.PrintParams(**jax.tree.map(jnp.float32, values))


def flat(**changes):
  """A medium that fills the crop exactly."""
  values = dict.fromkeys((f.name for f in dataclasses.fields(attacks.Placement)), 0.0) | {'zoom': 1.0} | changes
  return attacks.Placement(**jax.tree.map(jnp.float32, values))


def test_ink_has_a_smaller_gamut_and_dots_have_the_pitch():
  show = jax.jit(attacks.print_attack)
  key = jax.random.key(0)
  colors = np.zeros((SIZE, SIZE, 3), np.float32)
  colors[:, : SIZE // 2] = (0.9, 0.2, 0.1)
  colors[:, SIZE // 2 :] = (0.1, 0.5, 0.9)
  inside = slice(8, 56)
  printed = np.asarray(camera.encode(show(key, colors, plain_print(black=0.05), flat())))[inside, inside]
  chroma = lambda image: (image.max(-1) - image.min(-1)).mean()  # noqa: E731
  assert chroma(printed) < 0.9 * chroma(colors)
  grey = np.full((SIZE, SIZE, 3), 0.7, np.float32)
  dots = np.asarray(show(key, grey, plain_print(dots=1.0), flat()))[..., 0]
  smooth = np.asarray(show(key, grey, plain_print(dots=0.0), flat()))[..., 0]
  assert smooth.std() < 0.02 < dots.std()
  power = np.abs(np.fft.fft2(dots - dots.mean())) ** 2
  row, column = np.unravel_index(power.argmax(), power.shape)
  frequency = np.hypot(min(row, SIZE - row), min(column, SIZE - column)) / SIZE
  assert frequency == pytest.approx(1 / 4.0, rel=0.08)


def test_moire_is_the_beat_of_the_two_grids():
  """A lattice finer than the sensor's grid must come back at the folded frequency |1/pitch - 1|."""
  values = dict.fromkeys((f.name for f in dataclasses.fields(attacks.ReplayParams)), 0.0)
  values |= {'pitch': 1.0 / 1.125, 'lattice': 1.0, 'gamut': 1.0, 'gamma': 2.2, 'white': jnp.ones(3), 'band_period': 1.0}
  values |= {'lamps': jnp.ones((3, 6)), 'haze': jnp.zeros(3)}
  screen = attacks.ReplayParams(**jax.tree.map(jnp.float32, values))
  grey = jnp.full((SIZE, SIZE, 3), 0.6)
  image = np.asarray(jax.jit(attacks.replay_attack)(jax.random.key(0), grey, screen, flat()))
  row = image[4:-4, :, 1].mean(0)
  power = np.abs(np.fft.rfft(row - row.mean()))
  assert power.argmax() == pytest.approx(0.125 * SIZE, abs=1)
  fringes = np.asarray(image[4:-4, 4:-4]).std((0, 1))
  assert fringes.min() > 0.01 and np.abs(image[..., 0] - image[..., 1]).mean() > 0.01  # they are coloured


def test_placement_is_inverted_exactly_for_landmarks():
  place = flat(zoom=1.2, x=0.05, y=-0.1, angle=0.2, tilt_x=0.1, tilt_y=-0.08, bend=0.15)
  x, y = np.random.default_rng(0).uniform(-0.8, 0.8, (2, 50)).astype(np.float32)
  back = attacks.from_medium(place, *attacks.to_medium(place, x, y))
  np.testing.assert_allclose(back, (x, y), atol=1e-5)


def test_landmarks_move_with_the_presented_picture():
  points = np.array([[20.0, 24.0], [44.0, 24.0], [32.0, 46.0], [12.0, 50.0]], np.float32)
  picture = np.zeros((SIZE, SIZE, 3), np.float32)
  for x, y in points.astype(int):
    picture[y - 1 : y + 2, x - 1 : x + 2] = 1.0
  place = flat(zoom=1.15, x=0.06, y=-0.08, angle=0.1, tilt_x=0.06, tilt_y=-0.05, bend=0.12)
  light = np.asarray(jax.jit(attacks.print_attack)(jax.random.key(0), picture, plain_print(), place)).mean(-1)
  moved = np.asarray(attacks.move_landmarks(points, place, SIZE))
  assert np.abs(moved - points).max() > 3
  for x, y in moved:
    rows, columns = np.mgrid[int(y) - 3 : int(y) + 5, int(x) - 3 : int(x) + 5]
    weight = light[rows, columns]
    weight = np.where(weight > 0.3 * weight.max(), weight, 0.0)
    centre = (columns * weight).sum() / weight.sum(), (rows * weight).sum() / weight.sum()
    np.testing.assert_allclose(centre, (x, y), atol=0.35)


def test_a_clip_moves_smoothly_and_keeps_its_person():
  shown = faces.clip('phone', length=COUNT, size=SIZE, subject=1)
  assert shown.image.shape == (COUNT, SIZE, SIZE, 3) and shown.landmarks.shape == (COUNT, 68, 2)
  steps = np.linalg.norm(np.diff(shown.landmarks[:, 27:31].mean(1), axis=0), axis=-1)
  assert 0 < steps.max() < 2.0
  identity = shown.capture.scene.identity
  jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf[0], leaf[-1]), identity)
  replayed = faces.clip('laptop', 'replay', length=COUNT, size=SIZE, subject=1)
  jax.tree.map(np.testing.assert_array_equal, replayed.capture.scene.identity, identity)


def test_portraits_show_one_person_in_many_lights_at_any_size():
  shown = faces.portraits(3, count=2, size=50)
  assert shown.image.shape == (2, 50, 50, 3) and shown.landmarks.shape == (2, 68, 2)
  scene = shown.capture.scene
  jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf[0], leaf[1]), scene.identity)
  for changes in (scene.light.direction, scene.pose.yaw, shown.image):
    assert np.abs(changes[0] - changes[1]).max() > 1e-3


def test_eyes_blink_now_and_then():
  base = params.sample_face(jax.random.key(0))
  times = jnp.arange(0.0, 20.0, 0.04)
  blink = np.asarray(jax.vmap(lambda t: dataset.motion(jax.random.key(1), base, t).expression.blink)(times))
  onsets = ((blink[1:] > 0.5) & (blink[:-1] <= 0.5)).sum()
  assert 3 <= onsets <= 11 and 0.7 < (blink == 0).mean() < 0.95 and blink.max() == 1.0


def test_the_camera_adds_what_its_parameters_say():
  base = dict.fromkeys((f.name for f in dataclasses.fields(camera.CameraParams)), jnp.float32(0.0))
  base |= {'exposure': jnp.float32(0.3), 'blur': jnp.float32(0.05)}
  base |= {'saturation': jnp.float32(1.0), 'gamma': jnp.float32(2.2)}
  take = jax.jit(lambda light, p: camera.capture(jax.random.key(0), light, p))
  light = jax.random.uniform(jax.random.key(1), (32, 32, 3)) * 0.5

  def shot(**changes):
    return np.asarray(take(light, camera.CameraParams(**base | {k: jnp.float32(v) for k, v in changes.items()})))

  plain = shot()
  assert plain.min() >= 0 and plain.max() <= 1
  assert shot(blur=1.5).std() < 0.6 * plain.std()
  assert shot(warmth=0.2)[..., 0].mean() > plain[..., 0].mean() > shot(warmth=-0.2)[..., 0].mean()
  assert np.ptp(shot(saturation=0.0), axis=-1).max() < 0.02
  assert np.abs(shot(noise=0.05) - plain).mean() > 0.01
  assert np.abs(shot(jpeg=20.0) - plain).mean() > np.abs(shot(jpeg=2.0) - plain).mean() > 0


def test_mistakes_are_named():
  with pytest.raises(UserError, match='phone'):
    next(faces.examples('phon', 'train'))
  with pytest.raises(UserError, match="'dev'"):
    next(faces.examples('phone', 'dev'))
  with pytest.raises(UserError, match='8'):
    dataset.Config(size=8)
  with pytest.raises(UserError, match='mask'):
    faces.clip('phone', 'mask')
  with pytest.raises(UserError, match='600'):
    faces.clip('phone', size=600)
  with pytest.raises(UserError, match='0 frames'):
    faces.clip('phone', length=0)
  assert set(domains.DOMAINS) == {'laptop', 'phone', 'tablet', 'dslr'}
