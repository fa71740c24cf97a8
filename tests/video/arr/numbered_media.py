"""Footage and features that say their own number, in every form that ARR reads, and annotations that refer to them."""

import math

import lmdb
import numpy as np

from core.data import image, video
from video.arr import footage
from video.arr.annotations import tables

FPS = 10
VIDEOS = {'P01_01': 60, 'P01_102': 45}
"""Name -> frames; both are annotated to their ends."""


def picture(number, height=48, width=64):
  """uint8 [H, W, 3] with twelve blocks, three rows of four: the bits of a number."""
  blocks = (((number >> np.arange(12)) & 1) * 200 + 20).astype(np.uint8).reshape(3, 4)
  return np.repeat(np.repeat(np.repeat(blocks, height // 3, 0), width // 4, 1)[..., None], 3, -1)


def number_of(frame):
  """The number in a picture of any size; -1 of a black one."""
  if not frame.any():
    return -1
  height, width = frame.shape[:2]
  bits = frame[(np.arange(3) * 2 + 1) * height // 6][:, (np.arange(4) * 2 + 1) * width // 8].mean(-1).ravel() > 120
  return int((bits << np.arange(12)).sum())


def write_videos(root, form='{participant}/videos/{name}.MP4', videos=VIDEOS):
  """Video files, frame j showing number j."""
  for name, count in videos.items():
    path = root / form.format(participant=name[:3], name=name)
    path.parent.mkdir(parents=True, exist_ok=True)
    video.write(path, (picture(i) for i in range(count)), fps=FPS)
  return root


def write_folders(root, form='{participant}/rgb_frames/{name}', videos=VIDEOS, without=()):
  """Extracted frames, file i showing number i."""
  for name, count in videos.items():
    for i in range(1, count + 1):
      if i not in without:
        image.write_jpg(root / form.format(participant=name[:3], name=name) / f'frame_{i:010d}.jpg', picture(i))
  return root


def write_records(root, videos=VIDEOS):
  """Records, the frame at j / FPS showing number j."""
  films = [(name, [(i / FPS, picture(i)) for i in range(count)]) for name, count in videos.items()]
  footage.write(root, 'test', films, info={})
  return root


def write_lmdb(path, videos=VIDEOS, width=3, step=1, without=(), offset=0.0):
  """A store in RULSTM's format, vector i holding i + offset."""
  path.mkdir(parents=True, exist_ok=True)
  environment = lmdb.open(str(path), map_size=1 << 24)
  with environment.begin(write=True) as transaction:
    for name, count in videos.items():
      for i in range(1, count + 1, step):
        if i not in without:
          value = np.full(width, i + offset, '<f4').tobytes()
          transaction.put(f'{name}_frame_{i:010d}.jpg'.encode(), value)
  environment.close()
  return path


def write_npy(root, videos=VIDEOS, width=3, transposed=False):
  """Arrays, row j holding j."""
  root.mkdir(parents=True, exist_ok=True)
  for name, count in videos.items():
    rows = np.repeat(np.arange(count, dtype=np.float32)[:, None], width, 1)
    np.save(root / f'{name}.npy', rows.T if transposed else rows)
  return root


def annotate(videos=VIDEOS, fps=FPS, name='test'):
  """Annotations with one segment per second up to the end of each video."""
  seconds = {video: count / fps for video, count in videos.items()}
  rows = [(video, i, min(i + 1, end)) for video, end in seconds.items() for i in range(math.ceil(end))]
  segments = tables.columns({
    'uid': [f'{video}_{start}' for video, start, _ in rows],
    'video': [video for video, _, _ in rows],
    'participant': [video[:3] for video, _, _ in rows],
    'start': [start for _, start, _ in rows],
    'stop': [stop for _, _, stop in rows],
    'verb': [-1] * len(rows),
    'noun': [-1] * len(rows),
    'action': [0] * len(rows),
    'split': ['train'] * len(rows),
    'target': [True] * len(rows),
  })  # fmt: skip
  return tables.Annotations(name, tables.Vocabulary(('cut',)), segments)
