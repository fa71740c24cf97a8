"""Readers of action annotations on the public files themselves, where they are at hand."""

import csv
import pathlib

import numpy as np
import pytest

from video.arr import annotations
from video.arr.annotations import epic, salads, tables


@pytest.fixture(scope='module')
def real(shared_data) -> pathlib.Path:
  root = shared_data / 'action_anticipation'
  if not root.is_dir():
    pytest.skip(f'no {root}')
  return root


@pytest.fixture(scope='module')
def real_epic(real):
  return annotations.read('epic_kitchens_100', real)


def test_real_epic_counts_and_pairs(real, real_epic):
  segments, vocabulary = real_epic.segments, real_epic.vocabulary
  assert [int(np.sum(segments['split'] == split)) for split in tables.SPLITS] == [67217, 9668, 0]
  assert (vocabulary.classes, len(vocabulary.verbs), len(vocabulary.nouns)) == (3806, 97, 300)
  assert sorted([kind for kind, _, _ in real_epic.problems]) == [
    'known erratum',
    'known erratum',
    'missing file',
    'other form',
  ]  # no line is lost
  np.testing.assert_array_equal(np.array(vocabulary.verb_of)[segments['action']], segments['verb'])
  np.testing.assert_array_equal(np.array(vocabulary.noun_of)[segments['action']], segments['noun'])
  named = [line.split(',') for line in (real / 'epic_kitchens_100/rulstm_actions.csv').read_text().splitlines()[1:]]
  assert vocabulary.actions == tuple(text for *_, text in named)
  train = segments['split'] == 'train'
  unseen = set(segments['action'][~train]) - set(segments['action'][train])
  assert len(unseen) == 238 and np.isin(segments['action'][~train], list(unseen)).sum() == 372
  assert 0.25 < tables.overlaps(segments) / len(real_epic) < 0.28


def test_real_epic_groups_equal_the_lists_of_segments(real, real_epic):
  vocabulary = real_epic.vocabulary
  val = tables.select(real_epic.segments, real_epic.segments['split'] == 'val')
  verb, noun = np.isin(val['verb'], vocabulary.tail_verbs), np.isin(val['noun'], vocabulary.tail_nouns)
  groups = {
    ('tail_verbs', 1760): verb, ('tail_nouns', 1900): noun, ('tail_actions', 3105): verb | noun,
    ('unseen_participants', 1065): np.isin(val['participant'], vocabulary.unseen_participants),
  }  # fmt: skip
  for (name, count), members in groups.items():
    listed = (real / f'epic_kitchens_100/rulstm_validation_{name}_ids.csv').read_text().split()
    assert len(listed) == count and set(listed) == set(val['uid'][members].tolist())


def test_real_epic_frames_at_30_agree_with_the_timestamps(real, real_epic):
  frames = annotations.read('epic_kitchens_100', real, clock='frames')
  assert 'other form' not in [kind for kind, _, _ in frames.problems]
  official = tables.select(real_epic.segments, real_epic.segments['split'] == 'val')
  others = tables.select(frames.segments, frames.segments['split'] == 'val')
  a, b = np.argsort(official['uid']), np.argsort(others['uid'])
  for name in ('uid', 'video', 'participant', 'verb', 'noun', 'action'):
    np.testing.assert_array_equal(official[name][a], others[name][b])
  for name in ('start', 'stop'):
    assert np.abs(official[name][a] - others[name][b]).max() <= 1 / epic.FPS + 1e-9


def test_real_epic_start_frame_over_fps_would_drift(real, real_epic):
  """Why `start_frame` is not used: it is 60 x timestamp in every validation video, whatever the video's own rate."""
  folder = real / 'epic_kitchens_100'
  with (folder / 'EPIC_100_validation.csv').open(newline='') as file:
    frame_of = {row['narration_id']: int(row['start_frame']) for row in csv.DictReader(file)}
  with (folder / 'EPIC_100_video_info.csv').open(newline='') as file:
    rate_of = {row['video_id']: float(row['fps']) for row in csv.DictReader(file)}
  val = tables.select(real_epic.segments, real_epic.segments['split'] == 'val')
  frames = np.array([frame_of[uid] for uid in val['uid'].tolist()])
  assert np.abs(frames / 60 - val['start']).max() <= 1 / 60 + 1e-6
  drift = np.abs(frames / np.array([rate_of[video] for video in val['video'].tolist()]) - val['start'])
  late = {video: drift[val['video'] == video].max() for video in ('P09_07', 'P18_02', 'P18_09')}
  assert min(late.values()) > 45  # seconds


@pytest.mark.parametrize('fold', [1, 2, 3])
def test_real_egtea(real, fold):
  found = annotations.read('egtea', real, fold=fold)
  assert found.problems == () and len(found) == 10321 and len(set(found.segments['uid'])) == 10321
  sizes = {1: (8299, 2022), 2: (8299, 2022), 3: (8300, 2021)}
  train = found.segments['split'] == 'train'
  assert (int(train.sum()), int((~train).sum())) == sizes[fold]
  assert (found.vocabulary.classes, len(found.vocabulary.verbs), len(found.vocabulary.nouns)) == (106, 19, 51)
  assert found.vocabulary.verbs[4] == 'Turn on' and not any(name.startswith(' ') for name in found.vocabulary.actions)
  assert len(set(found.segments['video'])) == 86 and len(set(found.segments['participant'])) == 32
  assert set(found.segments['video'][~train]) <= set(found.segments['video'][train])
  assert set(found.segments['action'][~train]) == set(range(106))


def test_real_salads(real):
  folds = [annotations.read('salads', real, fold=fold) for fold in range(1, 6)]
  table = np.genfromtxt(real / '50salads/segments.csv', delimiter=',', names=True, dtype=None, encoding='utf-8')
  tested, people = [], []
  for found in folds:
    assert found.problems == () and len(found) == 999 and found.vocabulary.classes == 19
    assert found.vocabulary.actions == salads.ACTIONS
    assert found.segments['target'].sum() == 949
    order = np.lexsort((table['start'], table['video']))
    np.testing.assert_array_equal(found.segments['action'], table['action'][order])
    np.testing.assert_allclose(found.segments['start'] * 30, table['start'][order], atol=1e-6)
    np.testing.assert_allclose(found.segments['stop'] * 30, table['end'][order], atol=1e-6)
    test = found.segments['split'] == 'val'
    tested.append(set(found.segments['video'][test]))
    people.append(set(found.segments['participant'][test]))
    assert not people[-1] & set(found.segments['participant'][~test])
  assert [len(videos) for videos in tested] == [10] * 5 and len(set.union(*tested)) == 50
  assert len(set.union(*people)) == 25
