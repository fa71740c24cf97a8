"""Miniature datasets: really encoded clips of a drawn face under the official names, and a detector that knows it."""

import pathlib
import shutil

import numpy as np
import pytest

from core.data import face, video

BACKGROUND, FACE, BROW = (90, 90, 90), (220, 40, 40), (30, 200, 60)


def drawn(x=40, y=24, side=40, visible=True, height=96, width=128):
  """A red square face with a green brow on its upper edge, to tell upside down; flat colours survive codecs."""
  picture = np.full((height, width, 3), BACKGROUND, np.uint8)
  if visible:
    picture[y : y + side, x : x + side] = FACE
    picture[y : y + side // 4, x : x + side] = BROW
  return picture


class BrowDetector:
  """Finds a drawn face that is the right way up."""

  name = 'brow'

  def detect(self, image):
    values = image.astype(int)
    red = (values[..., 0] > 160) & (values[..., 1] < 110)
    green = (values[..., 1] > 140) & (values[..., 0] < 110)
    if red.sum() < 50 or green.sum() < 20:
      return []
    (ys, xs), (gy, gx) = np.nonzero(red | green), (np.mean(v) for v in np.nonzero(green))
    ry, rx = (np.mean(v) for v in np.nonzero(red))
    if ry - gy < abs(rx - gx) + 4:  # the brow must be above
      return []
    x, y = xs.min(), ys.min()
    return [face.Face((float(x), float(y), float(xs.max() + 1 - x), float(ys.max() + 1 - y)), 1.0)]


class Factory:
  """Encodes each kind of clip once and copies it to where it is wanted."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder

  def clip(self, path: pathlib.Path, kind: str = 'plain', frames: int = 8) -> pathlib.Path:
    """Writes a clip: plain, upside_down, sideways, tagged, no_face, or gaps (no face in frames 0 and 4)."""
    master = self.folder / f'{kind}-{frames}{path.suffix}'
    if not master.exists():
      pictures = [
        drawn(x=30 + 2 * i, visible=not (kind == 'no_face' or (kind == 'gaps' and i in (0, 4)))) for i in range(frames)
      ]
      turns = {'upside_down': 2, 'sideways': 1, 'tagged': -1}.get(kind, 0)
      pictures = [np.ascontiguousarray(np.rot90(p, turns)) for p in pictures]
      video.write(master, pictures, rotation=90 if kind == 'tagged' else 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(master, path)
    return path


@pytest.fixture(scope='session')
def factory(tmp_path_factory):
  return Factory(tmp_path_factory.mktemp('clips'))


@pytest.fixture(scope='session')
def detector():
  return BrowDetector()


@pytest.fixture
def drawn_face():
  return drawn


@pytest.fixture
def kinds():
  """problems -> {kind: [(path, detail)]}."""

  def group(problems):
    grouped = {}
    for kind, path, detail in problems:
      grouped.setdefault(kind, []).append((path, detail))
    return grouped

  return group
