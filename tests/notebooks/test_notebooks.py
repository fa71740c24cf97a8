"""Every notebook runs from its first cell to its last, as a newcomer would run it."""

import pathlib

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).resolve().parents[2] / 'notebooks').glob('*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path):
  nbformat = pytest.importorskip('nbformat')
  nbclient = pytest.importorskip('nbclient')
  pytest.importorskip('ipykernel')
  notebook = nbformat.read(path, as_version=4)
  assert not [cell for cell in notebook.cells if cell.get('outputs')], 'committed with outputs: clear them'
  nbclient.NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(path.parent.parent)}}).execute()
  assert any('image/png' in output.get('data', {}) for cell in notebook.cells for output in cell.get('outputs', ()))


def test_there_is_a_tour():
  assert NOTEBOOKS
