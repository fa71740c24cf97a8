"""Official downloads are found by the names that their folders go by."""

import pytest

from core.data.antispoofing import downloads
from core.errors import UserError

NAMES = ('msu_mfsd', 'replay_attack', 'casia_fasd', 'oulu_npu', 'rose_youtu', 'phones')


def test_a_folder_of_downloads(tmp_path):
  for name in ('OULU-NPU', 'Replay-Attack', 'holiday'):
    (tmp_path / name).mkdir()
  (tmp_path / 'phones.csv').write_text('')
  found = downloads.locate(tmp_path, NAMES)
  assert {name: path.name for name, path in found.items()} == {
    'replay_attack': 'Replay-Attack', 'oulu_npu': 'OULU-NPU', 'phones': 'phones.csv',
  }  # fmt: skip


def test_one_download(tmp_path):
  root = tmp_path / 'CASIA_FASD'
  (root / 'train_release').mkdir(parents=True)
  assert downloads.locate(root, NAMES) == {'casia_fasd': root}
  assert downloads.locate(root, NAMES, dataset='oulu_npu') == {'oulu_npu': root}


def test_what_cannot_be_told_is_asked(tmp_path):
  (tmp_path / 'stuff').mkdir()
  with pytest.raises(UserError, match='config.data.dataset=NAME'):
    downloads.locate(tmp_path / 'stuff', NAMES)
  with pytest.raises(UserError, match='There is no'):
    downloads.locate(tmp_path / 'gone', NAMES)
  for name in ('MSU', 'MSU-MFSD'):
    (tmp_path / name).mkdir()
  with pytest.raises(UserError, match="2 entries for 'msu_mfsd'"):
    downloads.locate(tmp_path, NAMES)
