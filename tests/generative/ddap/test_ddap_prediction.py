"""A user's photos: protected, kept as they were, gone on with after a stop, and each bad one with its reason."""

import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from core.data import identities, image
from core.diffusion import foundation
from launch import predict

CONFIG = '--config=configs/generative/ddap.py'
SMALL = {
  'model.variant': 'tiny', 'model.size': 32, 'method.outer': 2, 'method.eps_levels': 8, 'surrogate.steps': 1,
  'prior.count': 2, 'prior.steps': 2,
}  # fmt: skip


@pytest.fixture(scope='module', autouse=True)
def constant_weights(smaller_networks):
  """In the place of `Foundation.init`, which every launch compiles anew: the same random numbers each time."""
  init = foundation.Foundation.init

  def constants(self, rng):
    draw = np.random.default_rng(0).normal
    shapes = jax.eval_shape(lambda key: init(self, key), rng)
    return jax.tree.map(lambda leaf: draw(0.0, 0.1, leaf.shape).astype(np.float32), shapes)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(foundation.Foundation, 'init', constants)
    yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setattr('generative.ddap.prediction.CLASS_PHOTOS', str(tmp_path / 'class_photos'))


@pytest.fixture
def photos(tmp_path):
  """A folder: a photo, a JPEG on its side with an EXIF tag, a grey one, a text that says it is a photo."""
  folder, rng = tmp_path / 'photos', np.random.default_rng(0)
  folder.mkdir()
  smooth = [Image.fromarray(rng.integers(40, 215, (6, 5, 3), np.uint8)).resize((48, 40)) for _ in range(3)]
  smooth[0].save(folder / 'a.png')
  tag = Image.Exif()
  tag[0x0112] = 6
  smooth[1].save(folder / 'b.jpg', exif=tag)
  smooth[2].convert('L').save(folder / 'c.png')
  (folder / 'd.jpg').write_text('<html>')
  return folder


def launch(photos, output, preset=':fast', **changes):
  words = [f'--config.{key}={value}' for key, value in {**SMALL, **changes}.items()]
  return predict.main([CONFIG + preset, *words, '--input', str(photos), '--output', str(output)])


def rows(output):
  found = json.loads((output / 'predictions.json').read_text())['rows']
  return {pathlib.Path(row['file']).name: row for row in found}


def test_a_folder_is_protected_within_the_budget_and_lossless(photos, tmp_path, capsys):
  before = {path.name: path.read_bytes() for path in photos.iterdir()}
  assert launch(photos, tmp_path / 'out') == 0
  assert {path.name: path.read_bytes() for path in photos.iterdir()} == before
  found = rows(tmp_path / 'out')
  assert 'd.jpg' in found and 'web page' in found.pop('d.jpg')['error']
  assert set(found) == {'a.png', 'b.jpg', 'c.png'}
  for name, row in found.items():
    clean = identities.fit(image.read(photos / name), 32)
    path = pathlib.Path(row['protected'])
    assert path.suffix == '.png' and Image.open(path).format == 'PNG'
    change = np.abs(image.read(path).astype(int) - clean)
    assert 0 < change.max() <= 8 and row['linf'] == change.max()
    assert row['psnr'] < 60 and 0 < row['ssim'] < 1 and row['latent'] > 0
    assert 'random weights' in row['notes'] and 'cut to a square' in row['notes']
    assert (tmp_path / 'out' / 'sheets' / path.name).is_file()
  assert image.read(tmp_path / 'out' / 'sheet.png').shape[0] > 3 * 192
  assert 'random weights' in capsys.readouterr().out


def test_a_stopped_run_goes_on_and_what_is_done_is_kept(photos, tmp_path):
  out = tmp_path / 'out'
  assert launch(photos, out) == 0
  first = rows(out)
  (out / 'protected' / 'b.png').rename(tmp_path / 'b.png')
  kept = out / 'protected' / 'a.png'
  time = kept.stat().st_mtime_ns
  assert launch(photos, out) == 0
  assert kept.stat().st_mtime_ns == time
  assert (out / 'protected' / 'b.png').read_bytes() == (tmp_path / 'b.png').read_bytes()
  drop = lambda row: {key: value for key, value in row.items() if key != 'seconds'}  # noqa: E731
  assert {name: drop(row) for name, row in rows(out).items()} == {name: drop(row) for name, row in first.items()}


def test_nothing_is_replaced(photos, tmp_path):
  out = tmp_path / 'out'
  assert launch(photos / 'a.png', out) == 0
  done = (out / 'protected' / 'a.png').read_bytes()
  assert launch(photos / 'a.png', out, **{'method.eps_levels': 4}) == 2
  assert 'other settings' in rows(out)['a.png']['error']
  image.write_png(out / 'protected' / 'c.png', np.zeros((8, 8, 3), np.uint8))
  assert launch(photos / 'c.png', out) == 2
  assert 'nothing is replaced' in rows(out)['c.png']['error']
  assert (out / 'protected' / 'a.png').read_bytes() == done
  assert launch(out / 'protected' / 'a.png', out) == 2  # its own protection would lie on it
  assert 'overwritten' in rows(out)['a.png']['error']


def test_photos_of_one_person_are_protected_together_and_a_broken_one_costs_itself(photos, tmp_path):
  out = tmp_path / 'out'
  assert launch(photos, out, preset='', **{'predict.method': 'ddap', 'method.outer': 1}) == 0
  found = rows(out)
  assert 'error' in found.pop('d.jpg') and len(found) == 3
  assert len(list((tmp_path / 'class_photos').rglob('*.png'))) == 2
  assert all(row['linf'] <= 8 and row['last_reconstruction'] > 0 for row in found.values())


def test_a_mask_of_ones_own_spares_the_rest(photos, tmp_path):
  masks, out = tmp_path / 'masks', tmp_path / 'out'
  white = np.zeros((40, 48, 3), np.uint8)
  white[:, :24] = 255
  image.write_png(masks / 'a.png', white)
  options = {'predict.method': 'fast+mask', 'predict.masks': str(masks)}
  assert launch(photos, out, **options) == 0
  found = rows(out)
  assert 'holds no mask' in found['c.png']['error']
  change = image.read(found['a.png']['protected']) != identities.fit(image.read(photos / 'a.png'), 32)
  mask = image.read(found['a.png']['mask'])[..., 0] > 127
  assert mask.any() and not mask.all() and change[mask].any() and not change[~mask].any()


def test_alike_names_are_told_apart(photos, tmp_path):
  (photos / 'deep').mkdir()
  for name in ('a.jpg', 'deep/a.png'):
    Image.open(photos / 'a.png').save(photos / name)
  (photos / 'd.jpg').unlink()
  assert launch(photos, tmp_path / 'out') == 0
  names = {path.name for path in (tmp_path / 'out' / 'protected').iterdir()}
  assert names == {'a.png', 'a_png.png', 'b.png', 'c.png', 'deep_a.png'} and len(rows(tmp_path / 'out')) == 4


def test_tiny_huge_and_no_photos(tmp_path):
  folder = tmp_path / 'odd'
  folder.mkdir()
  assert launch(folder, tmp_path / 'out') == 2
  Image.new('RGB', (8, 8)).save(folder / 'tiny.png')
  Image.new('RGB', (2000, 40)).save(folder / 'strip.png')
  Image.fromarray(np.random.default_rng(1).integers(0, 255, (20, 20, 3), np.uint8)).save(folder / 'small.png')
  Image.fromarray(np.random.default_rng(1).integers(0, 255, (3000, 2600, 3), np.uint8)).save(folder / 'huge.png')
  assert launch(folder, tmp_path / 'out') == 0
  found = rows(tmp_path / 'out')
  assert 'at least 16' in found['tiny.png']['error'] and 'cut out the person' in found['strip.png']['error']
  assert 'enlarged from 20x20' in found['small.png']['notes']
  assert image.read(found['huge.png']['protected']).shape == (32, 32, 3)


def test_settings_that_mean_nothing(photos, tmp_path, capsys):
  assert launch(photos, tmp_path / 'out', **{'predict.method': 'dddap'}) == 2
  assert "did you mean 'ddap'" in capsys.readouterr().err.lower()
  assert launch(photos, tmp_path / 'out', preset='', **{'predict.method': 'spl', 'predict.reference': '/nowhere'}) == 2
