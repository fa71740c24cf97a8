"""Studies to records and back: what is kept, what is told, what is refused; and how a film is brought to size."""

import io
import pathlib
import pickle

import cv2
import numpy as np
import pytest
from PIL import Image

from core.data import records
from core.errors import UserError
from multimodal.trrg.datasets import films, tables
from multimodal.trrg.datasets.tables import Corpus, Film, Study


def drawing(height: int = 80, width: int = 100, seed: int = 0) -> np.ndarray:
  coarse = np.random.default_rng(seed).integers(0, 256, (8, 10), np.uint8)
  return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def put(path: pathlib.Path, image: np.ndarray) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path)
  return path


def study(name: str, *views: Film, split: str = 'train', report: str = 'Heart size is normal.') -> Study:
  return Study(name, f'p{name}', split, report, findings=report, films=views)


def drawn(view: str = 'frontal', seed: int = 0) -> Film:
  return Film(view, pixels=lambda: drawing(seed=seed))


def kinds(report: records.PrepareReport) -> list[str]:
  return [kind for kind, _, _ in report.problems]


def test_a_corpus_goes_to_records_and_comes_back(tmp_path):
  long = 'The lungs are clear. ' * 40  # too long for the index
  made = Corpus('made', [
    Study('a', 'p1', 'train', long, long, 'Normal.', 'Cough.', 'None.', 'normal', (drawn('lateral', 1), drawn(seed=2))),
    study('b', drawn('other', 3), drawn('other', 4), split='val', report='\N{GREEK SMALL LETTER ALPHA}'),
  ])  # fmt: skip
  studies, films_report = tables.write(tmp_path, made, pixels=64, info={'seed': 3})
  assert studies.counts == {'train': 1, 'val': 1, 'test': 0} and films_report.counts == {'films': 4}
  assert studies.problems == films_report.problems == []
  assert studies.manifest.info['seed'] == films_report.manifest.info['seed'] == 3

  loaded = tables.load(tmp_path, 'made', 'train')
  assert {name: column.tolist() for name, column in loaded.items()} == {
    'id': ['a'], 'patient': ['p1'], 'report': [long], 'findings': [long], 'impression': ['Normal.'],
    'indication': ['Cough.'], 'comparison': ['None.'], 'problems': ['normal'],
  }  # fmt: skip
  assert tables.load(tmp_path, 'made', 'val')['report'].tolist() == ['\N{GREEK SMALL LETTER ALPHA}']

  found = pickle.loads(pickle.dumps(tables.Films(tmp_path, 'made')))
  # Frontal before lateral, whatever the dataset's order; drawn films are lossless.
  frontal, lateral = found.views('a', 2)
  np.testing.assert_array_equal(frontal, films.shrink(drawing(seed=2), 64))
  np.testing.assert_array_equal(lateral, films.shrink(drawing(seed=1), 64))
  assert frontal.shape == (64, 80) and frontal.dtype == np.uint8
  assert [found.view(position) for position in found.of('a')] == ['frontal', 'lateral']
  np.testing.assert_array_equal(found.views('a', 1)[0], frontal)
  np.testing.assert_array_equal(found.views('b')[1], films.shrink(drawing(seed=4), 64))
  assert found.studies == ['a', 'b'] and len(found) == 4
  with pytest.raises(UserError, match="no film of study 'c'"):
    found.of('c')


def test_equal_records_are_left_alone_and_others_need_leave(tmp_path):
  made = Corpus('made', [study('a', drawn())])
  tables.write(tmp_path, made, pixels=64)
  before = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob('*.array_record*'))]
  again = tables.write(tmp_path, made, pixels=64)
  assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob('*.array_record*'))] == before
  assert again[0].counts['train'] == 1
  other = Corpus('made', [study('a', drawn(), report='There is a small effusion.')])
  with pytest.raises(UserError, match='exists already'):
    tables.write(tmp_path, other, pixels=64)
  with pytest.raises(UserError, match='exists already'):
    tables.write(tmp_path, made, pixels=72)
  tables.write(tmp_path, other, pixels=64, overwrite=True)
  assert tables.load(tmp_path, 'made', 'train')['report'].tolist() == ['There is a small effusion.']


@pytest.mark.parametrize('workers', [0, 3])
def test_films_that_cannot_be_used_are_told_and_cost_their_study_only_when_it_has_no_other(tmp_path, workers):
  good = put(tmp_path / 'good.png', drawing())
  broken = tmp_path / 'broken.png'
  broken.write_bytes(good.read_bytes()[:200])
  photo = put(tmp_path / 'photo.png', np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8))
  made = Corpus(
    'made',
    [
      study('half', Film('frontal', tmp_path / 'absent.png'), Film('lateral', good)),
      study('bad', Film('frontal', broken), Film('lateral', photo), split='val'),
      study('none', split='test'),
      study('fine', Film('frontal', good), split='test'),
    ],
    [('a kind', 'a path', 'of the reader')],
  )
  studies, films_report = tables.write(tmp_path / 'records', made, workers=workers)
  assert studies.counts == {'train': 1, 'val': 0, 'test': 1}
  expected = ['missing film', 'bad film', 'bad film', 'no film', 'no film']
  assert kinds(films_report) == expected and kinds(studies) == ['a kind', *expected]
  assert [path for kind, path, _ in films_report.problems if kind == 'no film'] == ['bad', 'none']
  assert 'colour' in films_report.problems[2][2]
  assert tables.load(tmp_path / 'records', 'made', 'test')['id'].tolist() == ['fine']
  with pytest.raises(UserError, match="'val' .* is empty"):
    tables.load(tmp_path / 'records', 'made', 'val')
  with pytest.raises(UserError, match="no split 'vall'.*Did you mean 'val'"):
    tables.load(tmp_path / 'records', 'made', 'vall')
  # A JPEG of the film, near to what it was, and told again when the records are already there.
  (film,) = tables.Films(tmp_path / 'records', 'made').views('half')
  assert np.abs(film.astype(int) - drawing()).max() < 12
  again = tables.write(tmp_path / 'records', made)[0]
  assert [path for _, path, _ in again.problems[1:]] == [str(tmp_path / 'absent.png'), str(broken), str(photo), 'none']


def test_without_films_every_study_is_kept_and_without_a_single_film_nothing_is(tmp_path):
  made = Corpus('made', [study('a', Film('frontal', tmp_path / 'absent.png')), study('b')])
  with pytest.raises(
    UserError, match=r"No film of 'made' can be read: 3 problems, the first is missing film: .*absent"
  ):
    tables.write(tmp_path, made)
  (report,) = tables.write(tmp_path, made, films=False)
  assert report.counts['train'] == 2 and report.problems == []
  with pytest.raises(UserError, match='made_films'):
    tables.Films(tmp_path, 'made')


def test_load_refuses_records_of_something_else(tmp_path):
  tables.write(tmp_path, Corpus('made', [study('a', drawn())]))
  with pytest.raises(UserError, match='hold no studies'):
    tables.load(tmp_path, 'made_films', 'films')


def test_a_film_has_one_source_and_a_known_view():
  with pytest.raises(ValueError, match='either'):
    Film('frontal')
  with pytest.raises(ValueError, match="'pa'"):
    Film('pa', pixels=drawing)


# One film.


def test_a_film_is_told_from_other_pictures(shared_data):
  for name in ('00000001_000.png', '16747_3_1.jpg'):
    film = films.read_film(shared_data / 'cxr_real' / name)
    assert film.dtype == np.uint8 and film.ndim == 2 and film.std() > 30
  for name in ('image_T1.jpg', 'image_F1.jpg', 'image_F2.jpg'):
    with pytest.raises(UserError, match=f'{name}.* in colour .*a grey chest film is expected'):
      films.read_film(shared_data / 'fas_real' / name)


@pytest.mark.parametrize(
  ('image', 'message'),
  [
    (drawing(63, 100), '100x63 pixels; a film needs at least 64'),
    (drawing(64, 193), '193x64 pixels, a strip'),
    (np.full((64, 64, 3), 7, np.uint8), 'blank: every pixel is 7'),
    (np.tile(np.uint8([200, 150, 140]), (70, 70, 1)), 'in colour .100%'),
  ],
)
def test_what_is_no_film_is_refused_by_name(image, message):
  with pytest.raises(UserError, match=f"^'x.png' is .*{message}"):
    films.check_film(image, 'x.png')


def test_a_coloured_mark_and_the_noise_of_jpeg_do_not_make_a_photograph():
  image = np.repeat(drawing(200, 200)[..., None], 3, -1)
  image[:20, :20] = (255, 0, 0)
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'JPEG', quality=60)
  film = films.check_film(np.asarray(Image.open(buffer)), 'marked')
  assert film.shape == (200, 200)
  np.testing.assert_array_equal(films.check_film(drawing(64, 192), 'wide'), drawing(64, 192))


def test_sixteen_bits_and_dicom(tmp_path):
  Image.fromarray(drawing().astype(np.uint16) * 257).save(tmp_path / 'deep.png')
  np.testing.assert_array_equal(films.read_film(tmp_path / 'deep.png'), drawing())
  (tmp_path / 'x.dcm').write_bytes(b'\0' * 128 + b'DICM')
  with pytest.raises(UserError, match='DICOM file.*export'):
    films.read_film(tmp_path / 'x.dcm')


def test_fit_keeps_the_centre_and_the_scale():
  wide = drawing(100, 150)
  np.testing.assert_array_equal(films.fit(wide, 100), wide[:, 25:125])
  np.testing.assert_array_equal(films.fit(wide.T, 100), wide.T[25:125])
  assert films.fit(wide, 64).shape == (64, 64) and films.fit(wide, 200).shape == (200, 200)
  assert films.shrink(wide, 64).shape == (64, 96) and films.shrink(wide, 128) is wide


def test_random_fit_is_the_key_s_and_moves_no_more_than_it_says():
  film = drawing(120, 150)
  one, same, other = (films.random_fit(film, 64, np.random.default_rng(seed)) for seed in (0, 0, 1))
  np.testing.assert_array_equal(one, same)
  assert one.shape == (64, 64) and one.dtype == np.uint8 and not np.array_equal(one, other)
  still = films.Augmentation(1.0, 0.0, 0.0, 0.0, 0.0, (1.0, 1.0))
  square = drawing(120, 120)
  np.testing.assert_array_equal(films.random_fit(square, 64, np.random.default_rng(0), still), films.fit(square, 64))
  # The cut alone: a part of the scaled film, pixel for pixel.
  scaled, cut = films.fit(square, 73), films.random_fit(square, 64, np.random.default_rng(2), films.CROP)
  places = [(y, x) for y in range(10) for x in range(10) if np.array_equal(scaled[y : y + 64, x : x + 64], cut)]
  assert len(places) == 1


def test_random_fit_never_flips():
  film = np.zeros((128, 128), np.uint8)
  film[30:98, 20:50] = 200  # bright on the left
  for seed in range(40):
    cut = films.random_fit(film, 64, np.random.default_rng(seed)).astype(float)
    assert cut[:, :32].sum() > 4 * cut[:, 32:].sum()


def test_brightness_and_contrast_stay_in_range():
  film = np.full((128, 128), 100, np.uint8)
  film[:, 64:] = 140
  means, spreads = [], []
  for seed in range(60):
    augment = films.Augmentation(degrees=0.0, shift=0.0, scale=(1.0, 1.0), resize=1.0)
    cut = films.random_fit(film, 64, np.random.default_rng(seed), augment).astype(float)
    means.append(cut.mean() / 120)
    spreads.append(cut.std() / 20 / means[-1])
  assert 0.79 < min(means) < 0.85 and 1.15 < max(means) < 1.21
  assert 0.77 < min(spreads) < 0.85 and 1.15 < max(spreads) < 1.23
