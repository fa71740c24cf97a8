"""Readers of action annotations: every form, written in small, and every kind of damage."""

import io
import pathlib
import tarfile

import numpy as np
import pytest

from core.data import records
from core.errors import UserError
from video.arr import annotations
from video.arr.annotations import salads, tables

HEADER = (
  'narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,'
  'narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes'
)


def put(root: pathlib.Path, files: dict[str, str | bytes]) -> pathlib.Path:
  for name, content in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return root


def kinds(found: annotations.Annotations) -> list[str]:
  return [kind for kind, _, _ in found.problems]


def row_of(found: annotations.Annotations, uid: str) -> dict:
  (which,) = np.flatnonzero(found.segments['uid'] == uid)
  return {name: column[which].item() for name, column in found.segments.items()}


# EPIC-KITCHENS-100.


def epic_line(uid, video, start, stop, verb, noun, text='"take plate, slowly"'):
  # start_frame is nonsense on purpose: nobody may use it.
  listed = f'"[\'cup:big\', \'tap\']","[{noun}, 0]"'
  return f'{uid},{video[:3]},{video},00:00:00.1,{start},{stop},999999,999999,{text},take,{verb},plate,{noun},{listed}'


def epic_files() -> dict[str, str]:
  train = [
    epic_line('P01_01_10', 'P01_01', '00:01:02.50', '00:01:04.00', 1, 2),
    epic_line('P01_01_2', 'P01_01', '01:00:00.00', '01:00:01.25', 0, 1),
    epic_line('P01_01_1', 'P01_01', '00:00:01.00', '00:01:03.00', 0, 1),
  ]
  return {
    'EPIC_100_train.csv': '\n'.join([HEADER, *train]) + '\n',
    'EPIC_100_validation.csv': '\n'.join([HEADER, epic_line('P02_01_0', 'P02_01', '00:00:05.0', '00:00:06.0', 1, 1)]),
    'EPIC_100_test_timestamps.csv': HEADER.rsplit(',', 6)[0]
    + '\nP03_101_0,P03,P03_101,0,00:00:07.0,00:00:08.5,1,2,x\n',
    'EPIC_100_verb_classes.csv': "id,key,instances,category\n0,take,\"['get', 'grab']\",a\n1,put,\"['lay']\",b\n",
    'EPIC_100_noun_classes.csv': 'id,key,instances,category\n0,tap,[],x\n1,spoon,[],x\n2,plate,"[\'dish\']",x',
    'EPIC_100_tail_verbs.csv': 'verb\n1\n',
    'EPIC_100_tail_nouns.csv': 'noun\n0\n2\n',
    'EPIC_100_unseen_participant_ids_validation.csv': 'participant_id\nP02\n',
  }


def rulstm_files() -> dict[str, str]:
  return {
    'training.csv': 'P01_01_1,P01_01,30,90,0,1,1\nP01_01_2,P01_01,75,120,1,2,0\n',
    'validation.csv': 'P02_01_0,P02_01,150,180,1,1,2\n',
    'test_timestamps.csv': 'P03_101_0,P03_101,210,255\n',
    'actions.csv': 'id,verb,noun,action\n0,1,2,put plate\n1,0,1,take spoon\n2,1,1,put spoon\n',
    'validation_tail_verbs_ids.csv': 'P02_01_0\n',
    'validation_tail_nouns_ids.csv': 'P02_01_0\n',
    'validation_unseen_participants_ids.csv': 'P02_01_0\n',
  }


def test_epic_official_form(tmp_path):
  found = annotations.read('epic_kitchens_100', put(tmp_path, epic_files()))
  assert found.name == 'epic_kitchens_100' and found.problems == ()
  assert set(found.sources) == set(epic_files())
  vocabulary = found.vocabulary
  assert vocabulary.actions == ('take spoon', 'put spoon', 'put plate')  # pairs of train and val, sorted
  assert (vocabulary.verb_of, vocabulary.noun_of, vocabulary.classes) == ((0, 1, 1), (1, 1, 2), 3)
  assert (vocabulary.tail_verbs, vocabulary.tail_nouns, vocabulary.unseen_participants) == ((1,), (0, 2), ('P02',))
  assert found.segments['uid'].tolist() == ['P01_01_1', 'P01_01_10', 'P01_01_2', 'P02_01_0', 'P03_101_0']
  assert row_of(found, 'P01_01_10') == {
    'uid': 'P01_01_10', 'video': 'P01_01', 'participant': 'P01', 'start': 62.5, 'stop': 64.0, 'verb': 1, 'noun': 2,
    'action': 2, 'split': 'train', 'target': True,
  }  # fmt: skip
  assert row_of(found, 'P01_01_2')['start'] == 3600.0
  test = row_of(found, 'P03_101_0')
  assert (test['split'], test['verb'], test['noun'], test['action'], test['target']) == ('test', -1, -1, -1, True)
  assert tables.overlaps(found.segments) == 1  # legal, and no problem


def test_epic_actions_are_the_sorted_pairs_where_no_list_numbers_them(tmp_path):
  pairs = np.random.default_rng(0).permutation([(verb, noun) for verb in range(20) for noun in range(0, 300, 50)])
  lines = [epic_line(f'a{i}', 'P01_01', '0:0:1.5', '0:0:2.5', verb, noun) for i, (verb, noun) in enumerate(pairs)]
  found = annotations.read('epic_kitchens_100', put(tmp_path, {'EPIC_100_train.csv': '\n'.join([HEADER, *lines])}))
  vocabulary = found.vocabulary
  assert list(zip(vocabulary.verb_of, vocabulary.noun_of)) == sorted(map(tuple, pairs.tolist()))
  for i, (verb, noun) in enumerate(pairs.tolist()):
    action = row_of(found, f'a{i}')['action']
    assert (vocabulary.verb_of[action], vocabulary.noun_of[action]) == (verb, noun)


def test_epic_rulstm_form_with_and_without_its_prefix(tmp_path):
  plain = annotations.read('epic_kitchens_100', put(tmp_path / 'a' / 'ek100', rulstm_files()), clock='frames')
  prefixed = put(tmp_path / 'b' / 'any name', {f'rulstm_{name}': text for name, text in rulstm_files().items()})
  same = annotations.read('epic_kitchens_100', prefixed.parent, clock='frames')  # found below the folder it is given
  for name in tables.DTYPES:
    np.testing.assert_array_equal(plain.segments[name], same.segments[name])
  assert row_of(plain, 'P01_01_2') == {
    'uid': 'P01_01_2', 'video': 'P01_01', 'participant': 'P01', 'start': 2.5, 'stop': 4.0, 'verb': 1, 'noun': 2,
    'action': 0, 'split': 'train', 'target': True,
  }  # fmt: skip
  assert row_of(plain, 'P03_101_0')['stop'] == 8.5 and row_of(plain, 'P03_101_0')['action'] == -1
  assert plain.vocabulary.verb_of == (1, 0, 1) and len(plain.vocabulary.verbs) == 97
  assert plain.vocabulary.actions[0] == 'verb_1 noun_2'  # there is no list of names
  groups = plain.vocabulary.tail_verbs, plain.vocabulary.tail_nouns, plain.vocabulary.unseen_participants
  assert groups == ((1,), (1,), ('P02',))
  assert kinds(plain).count('missing file') == 2 and kinds(plain).count('other form') == 3


def test_epic_forms_are_mixed_split_by_split_and_it_is_said(tmp_path):
  files = epic_files()
  del files['EPIC_100_train.csv'], files['EPIC_100_test_timestamps.csv'], files['EPIC_100_tail_nouns.csv']
  rulstm = {name: rulstm_files()[name] for name in ('training.csv', 'actions.csv')}
  found = annotations.read('epic_kitchens_100', put(tmp_path, files | rulstm))
  assert [(kind, path) for kind, path, _ in found.problems] == [
    ('other form', 'training.csv'),
    ('missing file', 'EPIC_100_test_timestamps.csv or test_timestamps.csv'),
    ('missing file', 'EPIC_100_tail_nouns.csv'),
  ]
  assert 'EPIC_100_train.csv' in found.problems[0][2]
  assert found.vocabulary.tail_nouns == ()
  assert row_of(found, 'P01_01_1')['start'] == 1.0 and row_of(found, 'P01_01_1')['action'] == 1
  assert row_of(found, 'P02_01_0')['action'] == 2  # the pair's number in actions.csv


def test_epic_damaged_lines_cost_themselves(tmp_path):
  files = rulstm_files()
  files['training.csv'] = (
    'narration_id,video_id,start_frame,stop_frame,verb,noun,action\n'  # a header where none belongs
    + files['training.csv']
    + 'P01_01_3,P01_01,200,150,0,1,1\n'  # stops before it starts
    + 'P01_01_4,P01_01,200,250,97,1,1\n'  # no such verb
    + 'P01_01_5,P01_01,200,250,0,0,1\n'  # a pair that is no action
    + 'P01_01_1,P01_01,300,350,0,1,1\n'  # an id that occurred
    + 'P01_01_6,P01_01,200,250\n'  # too short
    + 'P01_01_7,P01_01,2x0,250,0,1,1\n'  # no number
    + ',P01_01,200,250,0,1,1\n'  # no id
    + '\n'
    + 'P01_109_0,P01_109,200,250,0,1,2\n'  # another number for the same pair; erratum
  )
  files['validation.csv'] = files['validation.csv'].encode() + 'P02_01_é,P02_01,1,2,0,1,1\n'.encode('latin-1')
  found = annotations.read('epic_kitchens_100', put(tmp_path, files), clock='frames')
  problems = [(kind, path) for kind, path, _ in found.problems if kind not in ('other form', 'missing file')]
  assert sorted(problems) == sorted([
    ('unexpected header', 'training.csv:1'), ('stop before start', 'training.csv:4'),
    ('unknown class', 'training.csv:5'), ('unknown class', 'training.csv:6'), ('duplicate id', 'training.csv:7'),
    ('bad line', 'training.csv:8'), ('bad line', 'training.csv:9'), ('bad line', 'training.csv:10'),
    ('other action', 'training.csv:12'), ('not UTF-8', 'validation.csv:2'), ('known erratum', 'P01_109'),
  ])  # fmt: skip
  assert len(found) == 5 and row_of(found, 'P01_109_0')['action'] == 1
  assert row_of(found, 'P01_01_1')['start'] == 1.0  # the first of a pair of equal ids


@pytest.mark.parametrize('time', ['00:00', '1:2:3:4', 'aa:00:01.0', '', '12.5'])
def test_a_timestamp_of_another_form_is_a_problem(tmp_path, time):
  files = epic_files()
  files['EPIC_100_train.csv'] += epic_line('P01_01_9', 'P01_01', time, '00:00:09.0', 0, 1) + '\n'
  found = annotations.read('epic_kitchens_100', put(tmp_path, files))
  assert [problem[:2] for problem in found.problems] == [('bad line', 'EPIC_100_train.csv:5')]


def test_epic_not_a_number_does_not_pass_as_a_time(tmp_path):
  files = epic_files()
  files['EPIC_100_train.csv'] += epic_line('P01_01_9', 'P01_01', '00:00:nan', '00:00:inf', 0, 1) + '\n'
  assert kinds(annotations.read('epic_kitchens_100', put(tmp_path, files))) == ['bad line']


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'EPIC_100_train.csv': HEADER.replace('verb_class', 'verb_clas')}, "'verb_class'.*mean 'verb_clas'"),
    ({'EPIC_100_train.csv': epic_line('a', 'P01_01', '0:0:1', '0:0:2', 0, 1)}, "no column 'narration_id'"),
    ({'EPIC_100_train.csv': ''}, 'EPIC_100_train.csv is empty'),
    ({'EPIC_100_train.csv': HEADER.encode('utf-16')}, 'not UTF-8 text'),
    ({'EPIC_100_train.csv': HEADER + '\na;b;c\n'}, 'No line of'),
    ({'EPIC_100_verb_classes.csv': 'id,key\n0,take\n2,put\n'}, r'not 0\.\.1'),
    ({'EPIC_100_tail_verbs.csv': 'verb\nput\n'}, "'put'"),
    ({'actions.csv': 'id,verb,noun,action\n0,0,1,a\n1,0,1,a\n'}, 'action 1 is verb 0 and noun 1'),
    ({'actions.csv': 'id,verb,noun,action\n0,0,x,a\n'}, "'x'"),
  ],
)  # fmt: skip
def test_epic_files_that_are_useless_stop_the_reading(tmp_path, change, message):
  with pytest.raises(UserError, match=message):
    annotations.read('epic_kitchens_100', put(tmp_path, epic_files() | change))


def test_epic_empty_splits(tmp_path):
  files = epic_files() | {'EPIC_100_validation.csv': HEADER + '\n'}
  found = annotations.read('epic_kitchens_100', put(tmp_path, files))
  assert kinds(found) == ['empty split'] and 'val' in found.problems[0][2]
  nothing = dict.fromkeys(('EPIC_100_train.csv', 'EPIC_100_test_timestamps.csv'), HEADER + '\n')
  with pytest.raises(UserError, match='no usable segment'):
    annotations.read('epic_kitchens_100', put(tmp_path, files | nothing))


# EGTEA Gaze+.


def egtea_rulstm() -> dict[str, str]:
  return {
    'training2.csv': '7,OP01-R01-PastaSalad,300,360,1,0,1\n9,P02-R03-Pizza,30,45,2,1,2\n',
    'validation2.csv': '8,OP01-R01-PastaSalad,60,90,0,0,0\n',
    'actions.csv': '0, 0_0, Inspect/Read_recipe\n1, 1_0, Turn on_recipe\n2, 2_1, Take_eating:utensil\n',
    'training1.csv': '',
  }


def egtea_official() -> dict[str, str]:
  header = '# Clip ID; Clip Prefix (Unique); Video Session; Starting Time (ms); Ending Time (ms); Action Label; '
  lines = [
    header + 'Verb Label; Noun Label(s)',
    '7 ; OP01-R01-PastaSalad-10000-12000 ; OP01-R01-PastaSalad ; 10000 ; 12000 ; Turn on recipe ; Turn on ; recipe',
    '8; OP01-R01-PastaSalad-2000-3000; OP01-R01-PastaSalad; 2000; 3000; Inspect/Read recipe; Inspect/Read; recipe',
    '9 ; P02-R03-Pizza-1000-1500 ; P02-R03-Pizza ; 1000 ; 1500 ; Take eating:utensil,cup ; Take ; eating:utensil, cup',
  ]
  return {
    'raw_annotations/action_labels.csv': '\n'.join(lines),
    'train_split2.txt': 'OP01-R01-PastaSalad-10000-12000-F000240-F000288 2 2 1\n'
    'P02-R03-Pizza-1000-1500-F000024-F000036 3 3 2 5\n',
    'test_split2.txt': 'OP01-R01-PastaSalad-2000-3000-F000048-F000072 1 1 1\n',
  }


def test_egtea_forms_agree(tmp_path):
  rulstm = annotations.read('egtea', put(tmp_path / 'EG+', egtea_rulstm()), fold=2)
  official = annotations.read('egtea', put(tmp_path / 'action_annotation', egtea_official()), fold=2)
  assert rulstm.name == official.name == 'egtea_split2' and rulstm.problems == official.problems == ()
  for name in ('video', 'participant', 'start', 'stop', 'verb', 'noun', 'action', 'split', 'target'):
    np.testing.assert_array_equal(rulstm.segments[name], official.segments[name])
  assert rulstm.segments['uid'].tolist() == ['8', '7', '9']  # by time, and both splits of a session together
  assert official.segments['uid'][0] == 'OP01-R01-PastaSalad-2000-3000'
  assert rulstm.segments['split'].tolist() == ['val', 'train', 'train']
  assert rulstm.segments['start'].tolist() == [2.0, 10.0, 1.0]
  assert rulstm.segments['participant'].tolist() == ['OP01', 'OP01', 'P02']
  assert rulstm.vocabulary == official.vocabulary.from_plain(
    official.vocabulary.plain() | {'actions': list(rulstm.vocabulary.actions)}
  )
  assert rulstm.vocabulary.verbs == ('Inspect/Read', 'Turn on', 'Take')
  assert rulstm.vocabulary.nouns == ('recipe', 'eating:utensil')
  assert rulstm.vocabulary.actions == ('Inspect/Read recipe', 'Turn on recipe', 'Take eating:utensil')


def test_egtea_clock_chooses_between_the_forms(tmp_path):
  root = put(tmp_path, egtea_rulstm() | egtea_official())
  assert annotations.read('egtea', root, fold=2).segments['uid'][0].startswith('OP01-')
  assert annotations.read('egtea', root, fold=2, clock='frames').segments['uid'][0] == '8'


def test_egtea_damage(tmp_path):
  files = egtea_rulstm()
  files['training2.csv'] += 'id,session,start_frame,end_frame,verb,noun,action\n1,P02-R03-Pizza,1,9,0,0,3\n'
  files['training2.csv'] += '2,P02-R03-Pizza,1,9,1,1,1\n3,P02-R03-Pizza,9,9,0,0,0\n8,P02-R03-Pizza,1,9,0,0,0\n'
  found = annotations.read('egtea', put(tmp_path / 'a', files), fold=2)
  damage = ['unexpected header', 'unknown class', 'unknown class', 'stop before start', 'duplicate id']
  assert kinds(found) == [*damage, 'empty split']  # 8 was the only one of validation
  assert row_of(found, '8')['split'] == 'train'  # the first counts, wherever it stands
  with pytest.raises(UserError, match='no file training3'):
    annotations.read('egtea', tmp_path / 'a', fold=3)
  with pytest.raises(UserError, match='no fold 4'):
    annotations.read('egtea', tmp_path / 'a', fold=4)
  with pytest.raises(UserError, match='expected action 1'):
    annotations.read('egtea', put(tmp_path / 'b', files | {'actions.csv': '0, 0_0, a_b\n2, 1_0, a_b\n'}), fold=2)
  official = egtea_official()
  official['train_split2.txt'] += (
    'Nobody-1-2-F000001-F000002 1 1 1\nno clip 1 1 1\nP02-R03-Pizza-1000-1500-F1-F2 3 0 1\n'
  )
  official['train_split2.txt'] += '\nP02-R03-Pizza-1000-1500-F1-F2 3 2 1\n'
  found = annotations.read('egtea', put(tmp_path / 'c', official), fold=2)
  assert kinds(found) == ['missing label', 'bad line', 'bad line', 'unknown class']


# 50 Salads.


def salads_files(bundle: str = '{}.txt\n') -> dict[str, str]:
  return {
    'groundTruth/rgb-01-1.txt': 'action_start\n' * 30 + 'cut_tomato\n' * 45 + 'add_oil\n' * 15 + 'action_end\n' * 3,
    'groundTruth/rgb-02-1.txt': 'action_start\n' * 6 + 'add_oil\n' * 30 + 'action_end',
    'mapping.txt': '0 cut_tomato\n1 add_oil\n2 action_start\n3 action_end\n',
    'splits/train.split4.bundle': bundle.format('rgb-01-1'),
    'splits/test.split4.bundle': bundle.format('rgb-02-1'),
  }


def test_salads_frame_labels(tmp_path):
  found = annotations.read('salads', put(tmp_path / 'x' / '50salads', salads_files()).parent, fold=4)
  assert found.name == 'salads_fold4' and found.problems == ()
  assert found.vocabulary == tables.Vocabulary(('cut_tomato', 'add_oil', 'action_start', 'action_end'))
  assert found.segments['uid'].tolist() == [f'rgb-01-1_{i}' for i in range(4)] + [f'rgb-02-1_{i}' for i in range(3)]
  np.testing.assert_allclose(found.segments['start'], [0, 1, 2.5, 3, 0, 0.2, 1.2])
  np.testing.assert_allclose(found.segments['stop'], [1, 2.5, 3, 3.1, 0.2, 1.2, 37 / 30])
  assert found.segments['action'].tolist() == [2, 0, 1, 3, 2, 1, 3]
  assert found.segments['split'].tolist() == ['train'] * 4 + ['val'] * 3
  assert found.segments['participant'].tolist() == ['01'] * 4 + ['02'] * 3
  assert found.segments['target'].tolist() == [False, True, True, True, False, True, True]
  assert set(found.segments['verb']) == set(found.segments['noun']) == {-1}
  both = annotations.read('salads', tmp_path / 'x', fold=4, context=('action_start', 'action_end'))
  assert both.segments['target'].tolist() == [False, True, True, False, False, True, False]
  assert annotations.read('salads', tmp_path / 'x', fold=4, context=()).segments['target'].all()
  with pytest.raises(UserError, match="mean 'action_start'"):
    annotations.read('salads', tmp_path / 'x', fold=4, context=('action_strat',))


@pytest.mark.parametrize(
  'bundle', ['#bundle\n/home/someone/groundTruth/{}.txt\n', '#bundle\r\nC:\\data\\{}.txt\r\n', '{}\n\n']
)
def test_salads_bundles_of_all_sorts(tmp_path, bundle):
  found = annotations.read('salads', put(tmp_path, salads_files(bundle)), fold=4)
  assert found.problems == () and set(found.segments['split']) == {'train', 'val'}


def archive(files: dict[str, str]) -> bytes:
  packed = io.BytesIO()
  with tarfile.open(fileobj=packed, mode='w:gz') as tar:
    for name, text in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(text.encode())
      tar.addfile(member, io.BytesIO(text.encode()))
  return packed.getvalue()


def test_salads_archive_is_read_in_memory(tmp_path):
  files = salads_files()
  labels = {name: files.pop(name) for name in list(files) if name.startswith('groundTruth/')}
  folder = annotations.read('salads', put(tmp_path / 'a', salads_files()), fold=4)
  root = put(tmp_path / 'b', files | {'groundTruth.tar.gz': archive(labels | {'../../evil.sh': 'x'})})
  before = sorted(tmp_path.rglob('*'))
  packed = annotations.read('salads', root, fold=4)
  assert sorted(tmp_path.rglob('*')) == before  # nothing was unpacked to the disk
  for name in tables.DTYPES:
    np.testing.assert_array_equal(folder.segments[name], packed.segments[name])
  whole = (root / 'groundTruth.tar.gz').read_bytes()
  for broken in (whole[: len(whole) // 2], b'no archive', whole[:60] + bytes([whole[60] ^ 255]) + whole[61:]):
    (root / 'groundTruth.tar.gz').write_bytes(broken)
    with pytest.raises(UserError, match='cannot be unpacked'):
      annotations.read('salads', root, fold=4)


def test_salads_damage(tmp_path):
  files = salads_files()
  files['groundTruth/rgb-01-1.txt'] = 'action_start\n' * 30 + 'cut_tomatoe\n' * 30 + 'add_oil\n' * 30
  files['groundTruth/rgb-03-1.txt'] = 'add_oil\n' * 9
  files['groundTruth/rgb-09-2.txt'] = '\n'
  files['splits/train.split4.bundle'] += 'rgb-09-2.txt\nrgb-09-1.txt\n'
  del files['mapping.txt']
  found = annotations.read('salads', put(tmp_path / 'a', files), fold=4)
  assert [problem[:2] for problem in found.problems] == [
    ('missing file', 'mapping.txt'), ('unknown class', 'groundTruth/rgb-01-1.txt'),
    ('not in fold', 'groundTruth/rgb-03-1.txt'), ('empty file', 'groundTruth/rgb-09-2.txt'),
    ('missing file', 'rgb-09-1'),
  ]  # fmt: skip
  assert found.segments['start'][:2].tolist() == [0.0, 2.0]  # what has no class is a gap; what follows keeps its time
  with pytest.raises(UserError, match=r'no splits/train\.split5\.bundle'):
    annotations.read('salads', tmp_path / 'a', fold=5)
  both = salads_files() | {'splits/test.split4.bundle': 'rgb-01-1.txt\nrgb-02-1.txt\n'}
  with pytest.raises(UserError, match='rgb-01-1 both in train and in test'):
    annotations.read('salads', put(tmp_path / 'b', both), fold=4)
  with pytest.raises(UserError, match='INDEX NAME'):
    annotations.read('salads', put(tmp_path / 'c', salads_files() | {'mapping.txt': '0 a\n2 b\n'}), fold=4)


def test_salads_official_annotation(tmp_path):
  ticks = [5000 + 7 * i for i in range(300)]  # of frame 0..299, in units that nobody needs to know
  lines = [
    (30, 89, 'cut_tomato_prep'), (90, 119, 'cut_tomato_core'), (0, 299, 'cut_and_mix_ingredients'),
    (120, 149, 'cut_tomato_core'), (180, 209, 'add_oil_core'), (210, 239, 'add_oil_post'),
  ]  # fmt: skip
  files = {name: text for name, text in salads_files().items() if not name.startswith(('groundTruth', 'mapping'))}
  annotation = ''.join(f'{ticks[a]} {ticks[b]} {label}\n' for a, b, label in lines) + 'broken line of four words\n'
  for video in ('01-1', '02-1', '04-1'):
    files[f'ann-ts/activityAnnotations/{video}-activityAnnotation.txt'] = annotation
  clock = ''.join(f'{tick} rgb-frame\n' for tick in ticks)
  files |= {'ann-ts/timestamps/timestamps-01-1.txt': clock, 'ann-ts/timestamps/timestamps-02-1.txt': clock}
  found = annotations.read('salads', put(tmp_path, files), fold=4)
  first = tables.select(found.segments, found.segments['video'] == 'rgb-01-1')
  names = [found.vocabulary.actions[action] for action in first['action']]
  assert names == ['action_start', 'cut_tomato', 'cut_tomato', 'add_oil', 'action_end']
  np.testing.assert_allclose(first['start'], [0, 1, 4, 6, 8])
  np.testing.assert_allclose(first['stop'], [1, 4, 5, 8, 10])
  assert found.vocabulary.actions == salads.ACTIONS
  assert kinds(found) == ['missing file', 'bad line', 'bad line', 'missing file']
  (tmp_path / 'ann-ts/timestamps/timestamps-01-1.txt').write_text('5\n4\n')
  (tmp_path / 'ann-ts/timestamps/timestamps-02-1.txt').write_text('five\n')
  with pytest.raises(UserError, match='no usable segment'):
    annotations.read('salads', tmp_path, fold=4)


# All of them.


def test_names_and_places(tmp_path):
  with pytest.raises(UserError, match="mean 'egtea'"):
    annotations.read('egtae', tmp_path)
  with pytest.raises(UserError, match="mean 'timestamps'"):
    annotations.read('egtea', tmp_path, clock='timestamp')
  with pytest.raises(UserError, match='no fold 2'):
    annotations.read('epic_kitchens_100', tmp_path, fold=2)
  for dataset in annotations.DATASETS:
    with pytest.raises(UserError, match='no folder'):
      annotations.read(dataset, tmp_path / 'nowhere')
  put(tmp_path, {'readme.md': 'x'})
  with pytest.raises(UserError, match=r'found readme\.md; expected at least one of EPIC_100_train\.csv'):
    annotations.read('epic_kitchens_100', tmp_path)
  put(tmp_path / 'one', salads_files())
  put(tmp_path / 'two', salads_files())
  with pytest.raises(UserError, match=r"2 folders .*\['one', 'two'\]"):
    annotations.read('salads', tmp_path, fold=4)
  assert (
    annotations.name('salads', 5) == 'salads_fold5' and annotations.name('epic_kitchens_100') == 'epic_kitchens_100'
  )


def test_records_keep_everything_and_are_left_alone_when_equal(tmp_path):
  found = annotations.read('epic_kitchens_100', put(tmp_path / 'source', epic_files()))
  report = annotations.write(tmp_path, found)
  assert report.counts == {'train': 3, 'val': 1, 'test': 1} and report.problems == []
  loaded = annotations.load(tmp_path, 'epic_kitchens_100')
  assert (loaded.name, loaded.vocabulary, loaded.sources) == (found.name, found.vocabulary, found.sources)
  for name, dtype in tables.DTYPES.items():
    np.testing.assert_array_equal(loaded.segments[name], found.segments[name])
    assert (
      loaded.segments[name].dtype == found.segments[name].dtype
      and found.segments[name].dtype.type == np.dtype(dtype).type
    )
  assert records.Records(tmp_path, 'epic_kitchens_100', 'val')[0]['uid'] == 'P02_01_0'

  manifest = next((tmp_path / 'epic_kitchens_100').rglob('manifest.json'))
  before = manifest.stat().st_mtime_ns
  annotations.write(tmp_path, found)
  assert manifest.stat().st_mtime_ns == before
  moved = dict(found.segments) | {'start': found.segments['start'] - 0.25}
  annotations.write(tmp_path, tables.Annotations(found.name, found.vocabulary, moved, sources=found.sources))
  assert annotations.load(tmp_path, found.name).segments['start'][0] == 0.75
  with pytest.raises(UserError, match='exists already'):
    annotations.write(tmp_path, found, overwrite=False)
  records.write(tmp_path, 'faces', {'train': [('a', {'x': 1})]}, {'x': np.int32})
  with pytest.raises(UserError, match='holds no annotations'):
    annotations.load(tmp_path, 'faces')
