"""Readers look at names only, so most trees here are empty files; the decoding is test_antispoofing_prepare's."""

import collections

import pytest

from core.data.antispoofing import lists, readers
from core.errors import UserError


def touch(root, *names):
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def casia(root):
  stems = [*range(1, 9), *(f'HR_{i}' for i in range(1, 5))]
  for folder, people in (('train_release', 20), ('test_release', 30)):
    touch(root, *(f'{folder}/{i}/{stem}.avi' for i in range(1, people + 1) for stem in stems))


def replay(root):
  first = 1
  for split, people in (('train', 15), ('devel', 15), ('test', 20)):
    for i in range(first, first + people):
      client = f'client{i:03d}_session01'
      lights = ('adverse', 'controlled')
      touch(root, *(f'{split}/real/{client}_webcam_authenticate_{li}_{n}.mov' for li in lights for n in (1, 2)))
      for support in ('fixed', 'hand'):
        touch(root, *(f'{split}/attack/{support}/attack_print_{client}_highdef_photo_{li}.mov' for li in lights))
        touch(
          root,
          *(
            f'{split}/attack/{support}/attack_{device}_{client}_{device}_{medium}_{li}.mov'
            for li in lights for device in ('mobile', 'highdef') for medium in ('photo', 'video')
          ),
        )  # fmt: skip
      touch(root, f'enrollment/{split}/{client}_webcam_enroll_1.mov', f'face-locations/{split}/{client}.face')
    first += people


def msu(root, train=readers.MSU_TRAIN, test=readers.MSU_TEST, lists_=True):
  for subject in (*train, *test):
    client = f'client{int(subject):03d}'
    for device, suffix in (('android', 'mp4'), ('laptop', 'mov')):
      touch(root, f'scene01/real/real_{client}_{device}_SD_scene01.{suffix}')
      touch(root, f'scene01/real/real_{client}_{device}_SD_scene01.face')
      for medium in ('printed_photo', 'ipad_video', 'iphone_video'):
        touch(root, f'scene01/attack/attack_{client}_{device}_SD_{medium}_scene01.{suffix}')
  if lists_:
    (root / 'train_sub_list.txt').write_text('\n'.join(train) + '\n\n')
    (root / 'test_sub_list.txt').write_text('\n'.join(test))


def oulu(root):
  for folder, users in (('Train', range(1, 21)), ('Dev', range(21, 36)), ('Test', range(36, 56))):
    for user in users:
      names = (f'{p}_{s}_{user:02d}_{t}' for p in range(1, 7) for s in range(1, 4) for t in range(1, 6))
      touch(root, *(f'{folder}_files/{name}.avi' for name in names))
    touch(root, f'{folder}_files/1_1_{users[0]:02d}_1.txt')


def counts(listing):
  return {split: tuple(row[a] for a in ('live', 'print', 'replay', 'mask')) for split, row in listing.counts().items()}


def test_casia_fasd_complete(tmp_path):
  casia(tmp_path / 'CASIA_faceAntisp')  # one folder down, as the archive unpacks
  listing = readers.read(tmp_path, 'casia_fasd')
  assert counts(listing) == {'train': (60, 120, 60, 0), 'test': (90, 180, 90, 0)}
  assert listing.problems == []
  assert len({item.subject for item in listing.items}) == 50  # test subject 1 is not train subject 1
  item = next(i for i in listing.items if i.video_id == 'test_release/7/HR_4')
  assert (item.attack, item.label, item.extra['quality']) == ('replay', 0, 'high')


def test_casia_fasd_gaps_are_reported(tmp_path, kinds):
  casia(tmp_path)
  (tmp_path / 'train_release/3/HR_1.avi').unlink()
  for path in (tmp_path / 'test_release/9').iterdir():
    path.unlink()
  touch(tmp_path, 'train_release/5/9.avi', 'train_release/21/1.avi', 'test_release/1/._1.avi')
  problems = kinds(readers.read(tmp_path, 'casia_fasd').problems)
  assert problems['video count'][0] == ('train/train_3', '11 videos, expected 12')
  assert problems['missing subject'] == [('test/test_9', '0 of 12 videos')]
  assert problems['unknown file'][0][0] == 'train_release/5/9.avi'
  assert problems['unknown subject'][0][0] == 'train/train_21'
  assert sum(map(len, problems.values())) == 4


def test_replay_attack_complete(tmp_path):
  replay(tmp_path)
  listing = readers.read(tmp_path, 'replay_attack')
  assert counts(listing) == {'train': (60, 60, 240, 0), 'dev': (60, 60, 240, 0), 'test': (80, 80, 320, 0)}
  assert listing.problems == []
  assert listing.ignored == {'enrolment videos': 50, 'side files (.face)': 50}
  # The supports hold equal names: ids keep them apart.
  assert len({item.video_id for item in listing.items}) == 1200
  attack = next(item for item in listing.items if 'attack_print' in item.path.name)
  assert attack.attack == 'print' and attack.extra['support'] == 'fixed' and attack.extra['medium'] == 'photo'


def test_replay_attack_moved_subject_and_strange_name(tmp_path, kinds):
  replay(tmp_path)
  name = 'client001_session01_webcam_authenticate_adverse_1.mov'
  (tmp_path / 'train/real' / name).rename(tmp_path / 'test/real' / name)
  touch(tmp_path, 'train/real/client001_holiday.mov')
  problems = kinds(readers.read(tmp_path, 'replay_attack').problems)
  assert problems['subject in two splits'] == [('001', 'in test, train: these splits are not disjoint')]
  assert {p for p, _ in problems['count']} == {'train/live', 'test/live'}
  assert problems['unknown file'][0][0] == 'train/real/client001_holiday.mov'


def test_msu_mfsd_complete(tmp_path):
  msu(tmp_path)
  listing = readers.read(tmp_path, 'msu_mfsd')
  assert counts(listing) == {'train': (30, 30, 60, 0), 'test': (40, 40, 80, 0)}
  assert listing.problems == []
  turned = [item.path.stem for item in listing.items if item.extra.get('maybe_upside_down')]
  assert sorted(turned) == sorted(readers.MSU_UPSIDE_DOWN) and len(turned) == 6


def test_msu_mfsd_swapped_lists_are_swapped_back(tmp_path, kinds):
  msu(tmp_path, train=readers.MSU_TEST, test=readers.MSU_TRAIN)
  listing = readers.read(tmp_path, 'msu_mfsd')
  assert counts(listing)['train'] == (30, 30, 60, 0)
  assert kinds(listing.problems).keys() == {'swapped lists'}


def test_msu_mfsd_subjects_outside_the_lists(tmp_path, kinds):
  msu(tmp_path)
  (tmp_path / 'train_sub_list.txt').write_text('\n'.join([*readers.MSU_TRAIN[1:], '39', 'Bob']))
  touch(tmp_path, 'scene01/real/real_client099_android_SD_scene01.mp4')
  listing = readers.read(tmp_path, 'msu_mfsd')
  problems = kinds(listing.problems)
  assert sorted(problems['subject in no list']) == [
    ('02', "the official split 'train' is used"),
    ('99', "in neither sub_list.txt nor the official lists; split 'unlisted'"),
  ]
  assert problems['subject in two lists'][0][0] == '39' and problems['odd list entry'][0][1].startswith("'Bob'")
  assert counts(listing)['unlisted'] == (1, 0, 0, 0) and counts(listing)['train'] == (30, 30, 60, 0)


def test_msu_mfsd_without_lists_or_with_a_missing_subject(tmp_path, kinds):
  msu(tmp_path, lists_=False)
  for path in (tmp_path / 'scene01').rglob('*client055*'):
    path.unlink()
  listing = readers.read(tmp_path, 'msu_mfsd')
  problems = kinds(listing.problems)
  assert len(problems['missing list']) == 2 and problems['missing subject'] == [('train/55', '0 of 8 videos')]
  assert counts(listing)['train'] == (28, 28, 56, 0)


def test_oulu_npu_complete(tmp_path, kinds):
  oulu(tmp_path)
  listing = readers.read(tmp_path, 'oulu_npu')
  assert counts(listing) == {'train': (360, 720, 720, 0), 'dev': (270, 540, 540, 0), 'test': (360, 720, 720, 0)}
  assert listing.problems == [] and listing.ignored == {'side files (.txt)': 3}
  touch(tmp_path, 'Train_files/7_1_01_1.avi')
  assert kinds(readers.read(tmp_path, 'oulu_npu').problems)['unknown file'][0][0] == 'Train_files/7_1_01_1.avi'


def test_rose_youtu_labels_and_counts(tmp_path, kinds):
  names = {
    'G_T_5s_g_E_2_1': 'live', 'Ps_NT_HS_wg_E_2_2': 'print', 'Pq_T_ZTE_g_E_2_3': 'print', 'Mc_T_IP_wg_E_2_4': 'print',
    'Mf_T_5s_g_E_2_5': 'print', 'Mu_T_5s_g_E_2_6': 'print', 'Vl_T_5s_g_E_2_7': 'replay', 'Vm_T_5s_g_E_2_8': 'replay',
  }  # fmt: skip
  touch(
    tmp_path, *(f'train/2/{name}.mp4' for name in names), 'test/_11/G_NT_HW_wg_E_11_9.mp4', 'train/2/X_T_a_g_E_2_1.mp4'
  )
  touch(tmp_path, 'train/3/G_T_5s_g_E_2_10.mp4')
  listing = readers.read(tmp_path, 'rose_youtu')
  found = {item.path.stem: item for item in listing.items}
  assert {name: found[name].attack for name in names} == names
  assert found['G_NT_HW_wg_E_11_9'].split == 'test' and found['G_NT_HW_wg_E_11_9'].subject == '11'
  assert found['Mc_T_IP_wg_E_2_4'].extra == {'artefact': 'Mc', 'talking': True, 'device': 'IP', 'glasses': False}
  problems = kinds(listing.problems)
  assert ('G', '3 videos, expected 897') in problems['count']
  assert ('train', '1 subjects, 9 videos; expected 10 subjects, 1775 videos') in problems['count']
  assert problems['unknown file'][0][0] == 'train/2/X_T_a_g_E_2_1.mp4'
  assert problems['label surprise'][0][0] == 'train/3/G_T_5s_g_E_2_10.mp4'


def test_expected_numbers_are_the_specs():
  assert sum(readers.ROSE_COUNTS.values()) == 3497 and len(set(readers.MSU_TRAIN) | set(readers.MSU_TEST)) == 35


def test_siw_reads_live_videos_only(tmp_path, kinds):
  touch(tmp_path, 'Train/live/003/003-1-1-1-1.mov', 'Train/live/003/003-1-2-1-1.mov', 'Train/spoof/003/003-1-2-1-1.mov')
  listing = readers.read(tmp_path, 'siw_live')
  assert [(i.subject, i.attack) for i in listing.items] == [('003', 'live')]
  problems = kinds(listing.problems)
  assert 'label surprise' in problems and problems['count'] == [('train/live', '1 videos, expected 1313')]
  assert sum(listing.ignored.values()) == 1


def test_folder_of_a_user(tmp_path, kinds):
  touch(tmp_path, 'train/live/anna/a.mp4', 'train/live/anna/a.avi', 'test/print/b.jpg', 'test/spoof/c.mov', 'notes.txt')
  touch(tmp_path, 'test/holiday/d.mp4')
  listing = readers.read(tmp_path, 'my_set')
  assert counts(listing) == {'train': (2, 0, 0, 0), 'test': (0, 2, 0, 0)}
  assert {i.video_id for i in listing.items if i.split == 'train'} == {'train/live/anna/a.avi', 'train/live/anna/a.mp4'}
  assert kinds(listing.problems).keys() == {'unknown file', 'subject unknown', 'attack unknown', 'duplicate'}


def test_lists_in_the_releases_form(tmp_path, kinds):
  touch(tmp_path, 'a/1.zip', 'a/2.mp4', 'a/3.png')
  (tmp_path / 'a/4').mkdir()
  (tmp_path / 'SET_TRAIN.csv').write_text('a/1.mp4,0,10,12\na/2,1,3,3\n\na/missing.mp4,2,1,1\na/3.png,7\n')
  (tmp_path / 'SET_TEST.csv').write_text('path,label,subject,room\na/4,screen,eva,attic\na/2.mp4,live,eva,attic\n')
  listing = readers.read(tmp_path, 'my_lists')
  # TEST comes first by name, and its row for a/2 counts.
  assert [(i.path.name, i.split, i.attack) for i in listing.items] == [
    ('2.mp4', 'test', 'live'), ('4', 'test', 'replay'), ('1.zip', 'train', 'live'),
  ]  # fmt: skip
  problems = collections.Counter(kind for kind, _, _ in listing.problems)
  assert problems == {'listed but missing': 1, 'odd row': 1, 'duplicate': 1, 'subject unknown': 1}
  assert kinds(listing.problems)['listed but missing'][0] == (
    'a/missing.mp4', f'SET_TRAIN.csv:4; nothing of that name below {tmp_path}',
  )  # fmt: skip
  assert listing.items[1].subject == 'eva' and listing.items[1].extra == {'room': 'attic'}
  assert listing.items[2].extra == {'frames_with_face': '10', 'frames_total': '12'}


def test_split_of_a_lists_name():
  names = {'MSU-MFSD-TEST': 'test', 'OULU_dev': 'dev', 'REPLAY-ALL': 'train', 'testament': 'train', 'val': 'dev'}
  assert {name: lists.split_of_name(name) for name in names} == names


def test_wrong_roots_teach(tmp_path):
  with pytest.raises(UserError, match='No folder at'):
    readers.read(tmp_path / 'none', 'oulu_npu')
  touch(tmp_path, 'something/else.txt')
  with pytest.raises(UserError, match=r"does not look like OULU-NPU.*'Train_files'.*found something"):
    readers.read(tmp_path, 'oulu_npu')
  with pytest.raises(UserError, match="Did you mean 'oulu_npu'"):
    readers.read(tmp_path, 'oulu_npv')
  (tmp_path / 'Train_files').mkdir()
  with pytest.raises(UserError, match='No usable video'):
    readers.read(tmp_path, 'oulu_npu')
  with pytest.raises(UserError, match='No CSV list'):
    readers.read(tmp_path, 'mine', kind='list')
  with pytest.raises(UserError, match="expected 'auto'"):
    readers.read(tmp_path, 'mine', kind='films')
