"""Really encoded avi, mov and mp4 files under the official names, through detection and cropping, into records."""

import json
import zipfile

import numpy as np
import pytest

from core.data import face, image, video
from core.data.antispoofing import prepare, sources
from core.data.antispoofing.prepare import Settings, crop_item
from core.data.records import Records
from core.errors import UserError

SIZE = 32


def run(root, out, dataset, detector, **kwargs):
  return prepare.prepare(root, out, dataset, frames_per_video=3, size=SIZE, detector=detector, **kwargs)


def is_upright_face(crop):
  """The crop is the drawn face: green brow above, red below."""
  top, bottom = crop[2:6, 8:24].mean((0, 1)), crop[16:28, 8:24].mean((0, 1))
  return top[1] > 140 > top[0] and bottom[0] > 160 > bottom[1]


@pytest.fixture(scope='module')
def msu_tree(tmp_path_factory, factory):
  """Two train and one test subject of MSU-MFSD; lists swapped; every kind of misfortune."""
  root = tmp_path_factory.mktemp('msu')
  real, attack = root / 'scene01' / 'real', root / 'scene01' / 'attack'
  factory.clip(real / 'real_client003_android_SD_scene01.mp4', 'upside_down')  # as it was published
  factory.clip(real / 'real_client005_android_SD_scene01.mp4', 'plain')  # somebody has put this copy right
  factory.clip(real / 'real_client003_laptop_SD_scene01.mov', 'tagged')
  factory.clip(real / 'real_client005_laptop_SD_scene01.mov', 'sideways')
  factory.clip(attack / 'attack_client003_android_SD_printed_photo_scene01.mp4', 'gaps')
  factory.clip(attack / 'attack_client003_laptop_SD_printed_photo_scene01.mov', 'no_face')
  factory.clip(attack / 'attack_client003_laptop_SD_ipad_video_scene01.mov').write_bytes(b'')
  cut = factory.clip(attack / 'attack_client003_android_SD_ipad_video_scene01.mp4')
  cut.write_bytes(cut.read_bytes()[:-500])
  factory.clip(attack / 'attack_client001_android_SD_iphone_video_scene01.mp4')
  factory.clip(attack / 'attack_client001_holiday.mp4')
  (root / 'train_sub_list.txt').write_text('01')
  (root / 'test_sub_list.txt').write_text('03\n05\n')
  return root


@pytest.fixture(scope='module')
def msu_run(msu_tree, tmp_path_factory, detector):
  out, seen = tmp_path_factory.mktemp('records'), []
  report = run(msu_tree, out, 'msu_mfsd', detector, progress=lambda *step: seen.append(step))
  return out, report, seen


def test_every_readable_video_is_cropped_upright(msu_run):
  out, report, seen = msu_run
  assert report.counts == {'test': 3, 'train': 5 * 3} and report.dataset == 'msu_mfsd'
  assert seen[-1] == (9, 9)
  for split in ('train', 'test'):
    for record in Records(out, 'msu_mfsd', split):
      assert record['image'].shape == (SIZE, SIZE, 3) and record['image'].dtype == np.uint8
      assert is_upright_face(record['image']), record['video']
      assert record['domain'] == 'msu_mfsd' and record['frames_total'] == 8 and np.isnan(record['landmarks']).all()


def test_records_say_what_they_show(msu_run):
  out, _, _ = msu_run
  table = Records(out, 'msu_mfsd', 'train').table
  shown = set(zip(*(table[field].tolist() for field in ('video', 'label', 'attack', 'subject'))))
  assert ('scene01/real/real_client005_laptop_SD_scene01', 1, 0, '05') in shown
  assert ('scene01/attack/attack_client003_android_SD_printed_photo_scene01', 0, 1, '03') in shown
  assert len(shown) == 5
  test = Records(out, 'msu_mfsd', 'test')
  assert set(test.table['attack'].tolist()) == {2} and test.table['frame'].tolist() == [0, 3, 7]
  info = json.loads(test[0]['info'])
  assert info['detector'] == 'brow' and info['margin'] == 0.0 and info['device'] == 'android' and info['turned'] == 0


def test_the_report_counts_every_misfortune(msu_run, kinds):
  _, report, _ = msu_run
  problems = kinds(report.problems)
  assert len(problems['swapped lists']) == 1
  assert sorted(detail for _, detail in problems['turned']) == [
    'upright only after 180 degrees counter-clockwise; turned',
    'upright only after 270 degrees counter-clockwise; turned',
  ]
  assert [p.rsplit('/', 1)[1] for p, _ in problems['turned']] == [
    'real_client003_android_SD_scene01.mp4', 'real_client005_laptop_SD_scene01.mov',
  ]  # fmt: skip
  unreadable = {p.rsplit('/', 1)[1]: d for p, d in problems['unreadable']}
  assert '0 bytes' in unreadable['attack_client003_laptop_SD_ipad_video_scene01.mov']
  assert 'cut off' in unreadable['attack_client003_android_SD_ipad_video_scene01.mp4']
  assert [d for _, d in problems['neighbour used']] == ['no face in frame 0, frame 1 taken']
  assert len(problems['no face']) == 3 and problems['no usable frame'][0][0].endswith('printed_photo_scene01.mov')
  assert problems['unknown file'][0][0] == 'scene01/attack/attack_client001_holiday.mp4'
  assert len(problems['missing subject']) == len((*range(15), *range(20))) - 3
  assert 'swapped lists' in str(report) and '3 x no face' in str(report)


def test_threads_write_the_same_records(msu_run, msu_tree, tmp_path, detector):
  out, report, _ = msu_run
  again = run(msu_tree, tmp_path, 'msu_mfsd', detector, workers=3)
  assert again.counts == report.counts and sorted(again.problems) == sorted(report.problems)
  first, second = Records(out, 'msu_mfsd', 'train'), Records(tmp_path, 'msu_mfsd', 'train')
  assert first.table['key'].tolist() == second.table['key'].tolist()
  assert all(np.array_equal(a['image'], b['image']) for a, b in zip(first, second))


def test_the_other_datasets_end_to_end(tmp_path, factory, detector):
  trees = {
    'casia_fasd': ['train_release/1/1.avi', 'train_release/1/3.avi', 'test_release/1/HR_4.avi'],
    'replay_attack': [
      'train/real/client001_session01_webcam_authenticate_adverse_1.mov',
      'devel/attack/hand/attack_mobile_client021_session01_mobile_video_controlled.mov',
      'test/attack/fixed/attack_print_client031_session01_highdef_photo_adverse.mov',
    ],
    'oulu_npu': ['Train_files/1_1_01_1.avi', 'Dev_files/2_2_21_2.avi', 'Test_files/6_3_55_5.avi'],
    'rose_youtu': ['train/2/G_T_5s_g_E_2_1.mp4', 'test/_11/Mu_NT_HW_wg_E_11_9.mp4'],
    'own': ['train/live/a.avi', 'train/replay/b.mp4', 'test/mask/c.mov'],
  }
  expected = {
    'casia_fasd': {'train': 6, 'test': 3}, 'replay_attack': {'train': 3, 'dev': 3, 'test': 3},
    'oulu_npu': {'train': 3, 'dev': 3, 'test': 3}, 'rose_youtu': {'train': 3, 'test': 3},
    'own': {'train': 6, 'test': 3},
  }  # fmt: skip
  for dataset, names in trees.items():
    for name in names:
      factory.clip(tmp_path / dataset / name)
    assert run(tmp_path / dataset, tmp_path / 'records', dataset, detector).counts == expected[dataset]
  masks = Records(tmp_path / 'records', 'own', 'test')
  assert masks[0]['attack'] == 3 and masks[0]['label'] == 0 and is_upright_face(masks[0]['image'])


def write_zip(path, numbers, info=''):
  with zipfile.ZipFile(path, 'w') as archive:
    for number in numbers:
      archive.writestr(f'{number}.png', image.png_bytes(np.full((40, 40, 3), number, np.uint8)))
    if info:
      archive.writestr('info.txt', info)


def test_released_zips_of_crops(tmp_path, detector, kinds):
  # Insertion order, and 10 before 9 as text; frames 3-8 had no face.
  write_zip(tmp_path / 'a.zip', [10, 2, 9, 1], info='4\t30\n')
  (tmp_path / 'b.zip').write_bytes((tmp_path / 'a.zip').read_bytes()[:100])
  for number in range(2):
    image.write_png(tmp_path / 'c' / f'{number}.png', np.full((SIZE, SIZE, 3), 7, np.uint8))
  (tmp_path / 'c' / 'info.txt').write_text('5\t9')
  (tmp_path / 'list.csv').write_text('a.mp4,0,4,30\nb.zip,1,1,1\nc,2,5,9\nmissing,2,1,1\n')
  report = run(tmp_path, tmp_path / 'out', 'zips', detector)
  records = Records(tmp_path / 'out', 'zips', 'train')
  assert records.table['frame'].tolist() == [1, 2, 10, 0, 1]
  assert records.table['frames_total'].tolist() == [30, 30, 30, 9, 9]
  assert (records[2]['image'] == 10).all() and json.loads(records[2]['info'])['ready_crop']
  problems = kinds(report.problems)
  assert 'not a whole zip' in problems['unreadable'][0][1]
  assert 'states 5 crops, found 2' in problems['damaged'][0][1]
  assert problems['short'][0][1] == '2 frames, 3 wanted'
  assert problems['listed but missing'][0][0] == 'missing'


def test_photos_count_as_videos_of_one_frame(tmp_path, drawn_face, detector, kinds):
  image.write_png(tmp_path / 'live' / 'anna' / 'a.png', drawn_face())
  image.write_png(tmp_path / 'print' / 'bert' / 'b.png', drawn_face(visible=False))
  report = run(tmp_path, tmp_path / 'out', 'photos', detector)
  assert report.counts == {'train': 1}
  assert kinds(report.problems).keys() == {'no face', 'no usable frame'}
  assert is_upright_face(Records(tmp_path / 'out', 'photos', 'train')[0]['image'])


def test_margin_shows_more_around_the_face(tmp_path, drawn_face, detector):
  image.write_png(tmp_path / 'live' / 'a.png', drawn_face(x=44, y=28, side=40))
  item = prepare.readers.read(tmp_path, 'photos').items[0]
  ((_, tight),), _ = crop_item(item, Settings(size=40), detector)
  ((_, wide),), _ = crop_item(item, Settings(size=80, margin=0.5), detector)
  assert np.array_equal(wide['image'][20:60, 20:60], tight['image'])
  assert np.array_equal(wide['image'], image.read(item.path)[8:88, 24:104])


def test_a_set_without_any_face_is_an_error_with_the_reasons(tmp_path, factory, detector):
  factory.clip(tmp_path / 'live' / 'a.avi', 'no_face')
  with pytest.raises(UserError, match=r'no example.*3 x no face.*1 x no usable frame'):
    run(tmp_path, tmp_path / 'out', 'faceless', detector)
  assert not (tmp_path / 'out' / 'faceless' / '1.0.0').exists()


def test_a_frame_is_not_taken_twice(factory, tmp_path, detector):
  # 'gaps' lacks a face in frames 0 and 4; with frames 0, 1, ..., 7 all chosen no neighbour is left.
  factory.clip(tmp_path / 'live' / 'a.avi', 'gaps')
  item = prepare.readers.read(tmp_path, 'own').items[0]
  rows, problems = crop_item(item, Settings(frames_per_video=8, size=SIZE), detector)
  assert [row['frame'] for _, row in rows] == [1, 2, 3, 5, 6, 7]
  assert [kind for kind, _, _ in problems] == ['no face', 'no face']


def test_real_photographs_filmed_through_the_haar_detector(tmp_path, shared_data, kinds):
  photos = sorted((shared_data / 'fas_real').glob('*.jpg'))
  if len(photos) < 3:
    pytest.skip('no sample photos')
  for i, path in enumerate(photos):
    spoof, picture = '_F' in path.stem, image.read(path)
    pans = [np.ascontiguousarray(picture[4 * k : 4 * k + 600, 2 * k : 2 * k + 460]) for k in range(6)]
    upside_down = i == 0
    clip = [np.ascontiguousarray(p[::-1, ::-1]) if upside_down else p for p in pans]
    video.write(tmp_path / ('replay' if spoof else 'live') / path.stem / 'clip.mp4', clip)
  report = prepare.prepare(tmp_path, tmp_path / 'out', 'filmed', frames_per_video=3, size=64)
  assert report.counts == {'train': 9}
  problems = kinds(report.problems)
  assert list(problems) == ['turned'] and len(problems['turned']) == 1
  records = Records(tmp_path / 'out', 'filmed', 'train')
  assert sorted(set(zip(records.table['video'].tolist(), records.table['label'].tolist()))) == [
    ('live/image_T1/clip', 1), ('replay/image_F1/clip', 0), ('replay/image_F2/clip', 0),
  ]  # fmt: skip
  # The crop of a turned video shows what the detector finds in the photograph itself.
  photo = image.read(photos[0])
  reference = face.crop(photo, face.HaarDetector().detect(photo)[0], 64).astype(float)
  first = next(r for r in records if r['video'].endswith(f'{photos[0].stem}/clip'))['image'].astype(float)
  assert np.corrcoef(reference.ravel(), first.ravel())[0, 1] > 0.8


def test_sources_name_what_they_cannot_read(tmp_path):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match='holds no crop'):
    sources.open_source(tmp_path / 'empty')
