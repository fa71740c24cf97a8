"""Files that are either whole or not there."""

import pytest

from core import atomic


def test_a_file_is_whole_or_absent(tmp_path, monkeypatch):
  target = tmp_path / 'new' / 'x.json'
  monkeypatch.setattr('pathlib.Path.replace', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
  with pytest.raises(KeyboardInterrupt):
    atomic.write_atomically(target, '{}')
  assert not target.exists() and not list(target.parent.glob('*.json'))
  monkeypatch.undo()
  atomic.write_atomically(target, '{}')
  assert target.read_text() == '{}'
