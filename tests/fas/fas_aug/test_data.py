"""Which frames FAS-Aug trains and is judged on: protocols, held-out subjects, records rendered or cropped."""

import numpy as np
import pytest

from core import config as config_lib
from core.data import video
from core.errors import UserError
from fas.fas_aug import data

SMALL = {
  'data.subjects': 4, 'data.size': 16, 'data.frames_per_video': 2, 'data.augmented_frames_per_video': 1,
  'data.validation_fraction': 0.25,
}  # fmt: skip


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """The embedded experiment in miniature, its face world rendered once."""
  root = tmp_path_factory.mktemp('records')
  small = {**SMALL, 'data.records': str(root), 'data.domains': ('laptop', 'phone', 'tablet')}
  config = config_lib.load('configs/fas/fas_aug.py', small)
  assert [sum(report.counts.values()) for report in data.prepare(config)] == [4 * 4 * 2] * 3
  return config


def frames_of(config, name='laptop&phone->tablet'):
  changed = config_lib.derive(config, {'data.protocol': name})
  return data.Frames(changed, data.protocol(changed))


def people(records):
  return set(zip(records.table['domain'], records.table['subject']))


def test_leave_one_out_has_a_run_per_domain(config):
  assert [p.target for p in data.protocols_of(config)] == ['laptop', 'phone', 'tablet']
  with pytest.raises(UserError, match='means 3 runs; choose one of .*laptop&phone->tablet'):
    data.protocol(config)


def test_nobody_is_on_two_sides(config):
  frames = frames_of(config)
  train, val, test = (people(frames.split(name)) for name in data.SPLITS)
  assert not train & val and not train & test and not val & test
  assert {domain for domain, _ in train} == {domain for domain, _ in val} == {'laptop', 'phone'}
  assert {domain for domain, _ in test} == {'tablet'}
  assert (len(train), len(val), len(test)) == (2 * 3, 2 * 1, 4)


def test_augmented_streams_read_fewer_frames_of_the_same_training_videos(config):
  frames = frames_of(config)
  assert people(frames.augmented()) == people(frames.split('train'))
  assert 2 * len(frames.augmented()) == len(frames.split('train'))


def test_frames_per_video_are_honoured(config):
  one = frames_of(config_lib.derive(config, {'data.frames_per_video': 2}))
  _, counts = np.unique(one.split('test').table['video'], return_counts=True)
  assert set(counts) == {2}


def test_a_split_that_is_not_there_is_named(config):
  with pytest.raises(UserError, match="no split 'tset'.*Did you mean 'test'"):
    frames_of(config).split('tset')
  with pytest.raises(UserError, match='validation_fraction is 0'):
    frames_of(config_lib.derive(config, {'data.validation_fraction': 0.0})).split('val')


def test_rendering_again_changes_nothing(config):
  before = [report.manifest.fingerprint for report in data.prepare(config)]
  assert [report.manifest.fingerprint for report in data.prepare(config)] == before


def test_other_settings_are_another_world(config):
  assert data.records_root(config) != data.records_root(config_lib.derive(config, {'data.size': 32}))
  assert data.records_root(config) == data.records_root(config_lib.derive(config, {'seed': 5}))


def test_a_users_folder_becomes_a_domain(config, tmp_path, shared_data):
  from core.data import image

  picture = image.read(shared_data / 'fas_real' / 'image_T1.jpg')
  for subject, kind in (('a', 'live'), ('b', 'live'), ('b', 'print')):
    path = tmp_path / 'mine' / kind / f'{subject}_1.mp4'
    path.parent.mkdir(parents=True, exist_ok=True)
    video.write(path, [picture] * 3)
  own = config_lib.derive(config, {
    'data.kind': 'videos', 'data.domains': ('mine',), 'data.root': str(tmp_path / 'mine'),
    'data.records': str(tmp_path / 'records'), 'data.size': 64,
  })  # fmt: skip
  (report,) = data.prepare(own)
  assert sum(report.counts.values()) == 3 * 2
  with pytest.raises(UserError, match='data.root is empty'):
    data.prepare(config_lib.derive(own, {'data.root': ''}))


def test_an_unknown_kind_of_data_is_refused(config):
  with pytest.raises(UserError, match="data.kind is 'faces'"):
    data.is_procedural(config_lib.derive(config, {'data.kind': 'faces'}))
