"""What the kitchen world promises: cooking whose order matters, pictures that show it, all from (config, seed)."""

import dataclasses
import hashlib
import itertools
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier

from core.errors import UserError
from video.arr.kitchen import dataset, grammar, motion, painter, sheet
from video.arr.kitchen.grammar import Step

SMALL = dataset.Config(train_videos=12, val_videos=6, seconds=40)


@pytest.fixture(scope='module')
def walks():
  """[(state, step)] of 120 steps of each of twelve people."""
  people = [dataset.person(SMALL, 3, number).habits for number in range(12)]
  return [grammar.walk(np.random.default_rng(i), grammar.State(p), 120) for i, p in enumerate(people)]


@pytest.fixture(scope='module')
def annotations():
  return dataset.annotations(SMALL, 0)


def habits(recipes: tuple[float, ...], together: float, queue: float) -> grammar.Habits:
  """A person without preferences, untidy and never early."""
  return grammar.Habits(recipes, (1.0, 1.0, 1.0, 1.0), together, queue, tidy=0.0, early=0.0)


def fingerprint(config: dataset.Config, seed: int) -> str:
  """sha256 of the segments and of the frames of two videos."""
  table = dataset.annotations(config, seed).segments
  digest = hashlib.sha256(''.join(str(table[name].tolist()) for name in sorted(table)).encode())
  for number in (1, config.train_videos + 2):
    for moment, image in dataset.film(config, seed, dataset.video(config, seed, number)):
      digest.update(f'{moment}'.encode() + image.tobytes())
  return digest.hexdigest()


def still(world: grammar.World, seed: int = 0) -> np.ndarray:
  """A picture f32 [48, 48, 3] of a world in which nobody is."""
  rng = np.random.default_rng(seed)
  look, body = painter.look(rng, 0), motion.Body()
  return painter.Painter(48, look, rng).paint(motion.idle(world, body, body.away), 0.0).astype(np.float32)


# Grammar.


def test_probabilities_add_up_and_every_step_is_possible(walks):
  seen = set()
  for walked in walks:
    for i, (state, step) in enumerate(walked):
      if i % 4 == 0:
        assert sum(p for p, _, _ in grammar.options(state)) == pytest.approx(1)
      world, held = state.world, state.world.held
      if step.verb == 'take':
        assert not held and world.places[step.noun] not in ('bowl', 'pan')
      elif step.verb == 'put':
        assert held == step.noun or (not held and step.noun in world.chopped and world.places[step.noun] == 'board')
      elif step.verb in ('open', 'close'):
        assert (step.noun in world.opened) == (step.verb == 'close')
      elif step.verb == 'cut':
        assert held == 'knife' and world.places[step.noun] == 'board' and step.noun not in world.chopped
      elif step.verb == 'pour':
        assert held == step.noun and (step.noun == 'pan' or 'bottle' in world.opened)
      elif step.verb == 'stir':
        assert held == 'spoon' and world.filled[step.noun]
      elif step.noun in ('tomato', 'cucumber', 'knife'):
        assert 'tap' in world.opened
      seen.add(step.action)
  assert seen == set(grammar.ACTIONS) and len(grammar.ACTIONS) == 40


def test_the_same_actions_in_another_order_lead_elsewhere():
  """Soup and salad: who has cut, then washed, fills the pan; who has washed, then cut, fills the bowl."""
  person = habits((0.5, 0.5, 0.0, 0.0), together=0.0, queue=1.0)
  fetch = ['open fridge', 'take tomato', 'close fridge', 'put tomato']
  wash, cut = ['open tap', 'wash tomato', 'close tap'], ['open drawer', 'take knife', 'cut tomato', 'put knife']
  filled = []
  for actions in ([*fetch, *wash, *cut, 'put tomato'], [*fetch, *cut, *wash, 'put tomato']):
    belief = [(1.0, grammar.State(person))]
    for action in actions:
      belief = grammar.observe(belief, action)
    filled.append({vessel for _, state in belief for vessel, food in state.world.filled.items() if food})
  assert filled == [{'bowl'}, {'pan'}]


def test_the_order_of_fetching_decides_what_is_cut_first():
  for queue, first in ((1.0, 'tomato'), (0.0, 'cheese')):
    belief = [(1.0, grammar.State(habits((0.0, 0.0, 0.0, 1.0), together=1.0, queue=queue)))]
    oil = ['take bottle', 'open bottle', 'pour bottle', 'put bottle']
    fetch = ['open fridge', 'take tomato', 'put tomato', 'take cheese', 'put cheese', 'close fridge']
    for action in (*oil, *fetch, 'open drawer', 'take knife'):
      belief = grammar.observe(belief, action)
    assert grammar.likeliest(belief) == (f'cut {first}', pytest.approx(1))


def test_belief_holds_the_truth_and_knowing_more_is_never_worse(walks):
  gains = []
  for walked in walks[:4]:
    belief = [(1.0, grammar.State(walked[0][0].person))]
    for state, step in walked:
      assert sum(weight for weight, _ in belief) == pytest.approx(1)
      assert state.key in [candidate.key for _, candidate in belief]
      gains.append(grammar.likeliest([(1.0, state)])[1] - grammar.likeliest(belief)[1])
      belief = grammar.observe(belief, step.action)
  assert np.mean(gains) > 0.01


def test_longer_histories_tell_more():
  known = dataset.ceiling(dataset.Config(), 0, videos=240)
  assert 0.35 < known['bigram'] < 0.6
  assert known['trigram'] > known['bigram'] + 0.1
  assert known['context_4'] > known['trigram'] + 0.04
  assert known['history'] > known['context_8'] + 0.04
  assert known['history'] + 0.01 < known['state'] < 0.99


# Annotations.


def test_annotations_keep_the_contract(annotations):
  table, vocabulary = annotations.segments, annotations.vocabulary
  assert annotations.name == 'kitchen' and not annotations.problems
  assert len(set(table['uid'].tolist())) == len(annotations) > 250
  assert (len(vocabulary.verbs), len(vocabulary.nouns), vocabulary.classes) == (8, 13, 40)
  for row in range(0, len(annotations), 17):
    verb, noun = vocabulary.actions[table['action'][row]].split()
    assert vocabulary.verbs[table['verb'][row]] == verb and vocabulary.nouns[table['noun'][row]] == noun
  people = {split: set(table['participant'][table['split'] == split].tolist()) for split in ('train', 'val')}
  assert set(vocabulary.unseen_participants) == people['val'] - people['train'] == {'P09', 'P10'}
  assert people['val'] & people['train']
  for ids, names in ((vocabulary.tail_verbs, vocabulary.verbs), (vocabulary.tail_nouns, vocabulary.nouns)):
    column = table['verb' if names is vocabulary.verbs else 'noun'][table['split'] == 'train']
    assert 0 < len(ids) < len(names) and np.isin(column, ids).mean() <= 0.2


def test_actions_last_gaps_and_overlaps_are_as_promised(annotations):
  table = annotations.segments
  length = table['stop'] - table['start']
  assert length.min() >= 1 and length.max() <= 4.4 and table['start'].min() > 1
  gap = (table['start'][1:] - table['stop'][:-1])[table['video'][1:] == table['video'][:-1]]
  assert 0.25 < (gap > 0.4).mean() < 0.45 and 0.15 < (gap < 0).mean() < 0.35
  assert gap.max() <= 3 and gap.min() >= -0.4 - 1e-9


def test_footage_matches_the_annotations(annotations):
  config = dataset.Config(size=64, fps=5, train_videos=1, val_videos=1, seconds=10)
  table, films = dataset.annotations(config, 0).segments, list(dataset.footage(config, 0))
  assert {name for name, _ in films} == set(table['video'].tolist())
  for name, frames in films:
    moments, images = zip(*frames)
    np.testing.assert_allclose(moments, np.arange(len(moments)) / 5)
    assert moments[-1] + 1 / 5 >= table['stop'][table['video'] == name].max()
    assert all(image.shape == (64, 64, 3) and image.dtype == np.uint8 for image in images)


def test_everything_is_a_function_of_config_and_seed_in_any_process():
  config = dataset.Config(train_videos=3, val_videos=3, seconds=15)
  state = np.random.get_state()[1].tolist()  # noqa: NPY002 (that nobody touches it is the point)
  here = fingerprint(config, 7)
  assert np.random.get_state()[1].tolist() == state  # noqa: NPY002
  assert here == fingerprint(config, 7) != fingerprint(config, 8)
  code = f'import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r}); import test_kitchen as t; '
  code += f'print(t.fingerprint(t.dataset.{config!r}, 7))'
  environment = {**os.environ, 'PYTHONHASHSEED': '11', 'PYTHONPATH': str(pathlib.Path(__file__).parents[3])}
  done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True)
  assert done.stdout.strip() == here


def test_impossible_configurations_are_refused_by_name():
  with pytest.raises(UserError, match=r"'people' is 0"):
    dataset.Config(people=0)


# Pictures.


def test_hands_and_things_never_jump():
  """At 40 frames a second hands move a fraction of the table, and things no further than into or out of a hand."""
  hands, things = 0.0, 0.0
  for number in range(12):
    shots = [scene for _, scene in dataset.scenes(dataset.video(SMALL, 1, number), 40)]
    for before, after in itertools.pairwise(shots):
      hands = max(hands, *(np.hypot(a[0] - b[0], a[1] - b[1]) for a, b in zip(before.hands, after.hands)))
      shared = before.things.keys() & after.things.keys()
      pairs = [(before.things[noun], after.things[noun]) for noun in shared]
      things = max(things, *(np.hypot(a.x - b.x, a.y - b.y) for a, b in pairs))
  assert 0.02 < hands < 0.2 and things < 0.15


def test_every_state_of_the_kitchen_is_visible():
  base = grammar.World()
  onto = {**base.places, **dict.fromkeys(grammar.INGREDIENTS, 'board')}
  laid = grammar.World(onto)
  steps = [Step('open', noun) for noun in ('fridge', 'drawer', 'tap', 'bottle')]
  steps += [Step('cut', food) for food in grammar.INGREDIENTS] + [
    Step('put', food, 'pan') for food in grammar.INGREDIENTS
  ]
  steps += [Step('put', 'knife', 'counter'), Step('take', 'pan'), Step('pour', 'bottle', 'bowl')]
  pictures = [still(laid.after(step)) for step in steps]
  noise = np.abs(still(laid) - still(laid)).max()
  assert noise == 0
  for picture, step in zip(pictures, steps):
    changed = np.abs(picture - still(laid)).max(-1) > 25
    assert changed.sum() >= (2 if step.noun == 'bottle' else 5), step
    assert changed.mean() < 0.15, step
  assert len({picture.tobytes() for picture in pictures}) == len(steps)


def test_mirroring_and_handedness_show():
  look = painter.look(np.random.default_rng(0), 0)
  body = motion.Body()
  other = dataclasses.replace(look, mirrored=not look.mirrored)
  images = [
    painter.Painter(48, one, np.random.default_rng(1)).paint(motion.idle(grammar.World(), body, body.away), 0.0)
    for one in (look, other)
  ]
  straight, flipped = (image.astype(np.float32) for image in images)
  assert np.abs(straight - flipped[:, ::-1]).mean() < 0.5 * np.abs(straight - flipped).mean()
  assert body.rest.main[0] > 0.5 > motion.Body(side=-1).rest.main[0]


def test_a_linear_classifier_recognises_actions_from_four_frames():
  config = dataset.Config(train_videos=24, val_videos=9, seconds=50)

  def clips(numbers):
    rows, labels = [], []
    for number in numbers:
      script = dataset.video(config, 0, number)
      film = np.stack([image for _, image in dataset.film(config, 0, script)]).astype(np.float32)
      film = film.reshape(len(film), 12, 4, 12, 4, 3).mean((2, 4))
      for act in script.acts:
        last = int((act.start + 0.7 * (act.end - act.start)) * config.fps)
        clip = film[last - 3 : last + 1]
        rows.append(np.concatenate([clip[3:], np.diff(clip, axis=0)]).ravel())
        labels.append(grammar.ACTIONS.index(act.step.action))
    return np.array(rows), np.array(labels)

  (train, known), (test, truth) = clips(range(24)), clips(range(24, 33))
  mean, scale = train.mean(0), train.std(0) + 5
  guess = RidgeClassifier(alpha=3e3).fit((train - mean) / scale, known).predict((test - mean) / scale)
  majority = np.mean(truth == np.bincount(known).argmax())
  assert np.mean(guess == truth) > 0.4 > 3 * majority


def test_contact_sheet_shows_actions_and_gaps():
  image = sheet.sheet(SMALL, 0, rows=3, columns=3)
  assert image.dtype == np.uint8 and image.shape == (3 * (18 + 96 + 4), 3 * (3 * 96 + 8), 3)
  assert len(np.unique(image.reshape(-1, 3), axis=0)) > 500
