"""Video files as PyAV sees them: opening, packets, and the display matrix that says which way is up.

What `core.data.video` (frames by number) and `core.data.seek` (frames by time) share.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import av
import numpy as np

from core.errors import UserError


def open_file(path: str | pathlib.Path) -> av.container.InputContainer:
  """Opens a file; raises `UserError` when it is missing, empty or no video."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"No video file at '{path}'.")
  if path.stat().st_size == 0:
    raise UserError(f"'{path}' is empty (0 bytes). Copy or download it again.")
  try:
    return av.open(str(path), metadata_errors='replace')  # titles and comments come in any encoding
  except av.error.FFmpegError as error:
    raise UserError(
      f"'{path}' cannot be opened as a video ({error.strerror}). An mp4 or mov that was cut off has lost its index: "
      'copy or download it again.'
    ) from error


def video_stream(container: av.container.InputContainer, path: str | pathlib.Path) -> av.video.stream.VideoStream:
  """The first video stream, decoded by as many threads as FFmpeg thinks fit; raises `UserError` without one."""
  if not container.streams.video:
    raise UserError(f"'{path}' has no video stream ({len(container.streams)} other streams).")
  stream = container.streams.video[0]
  if stream.codec_context is None:
    raise UserError(
      f"'{path}' names no codec that this PyAV can decode: it was cut off (copy or download it again), or its codec is "
      'too unusual (convert it to H.264).'
    )
  stream.thread_type = 'AUTO'
  return stream


def packets_of(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> Iterator[av.Packet]:
  """Packets of a stream; a read error ends it like the end of the file (the count then shows what is missing)."""
  packets = container.demux(stream)
  while True:
    try:
      packet = next(packets)
    except (StopIteration, av.error.FFmpegError):
      return
    yield packet


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
  """Signs (a, b, c, d) of the display matrix, x' = a x + c y, y' = b x + d y, y downwards; identity without a tag."""
  for side_data in frame.side_data:
    if side_data.type == av.sidedata.sidedata.Type.DISPLAYMATRIX:
      a, b, _, c, d = np.frombuffer(bytes(side_data), np.int32)[:5].tolist()
      # Entries are 16.16 fixed point; anything but a multiple of 90 degrees is taken to the nearest one.
      return (_sign(a), 0, 0, _sign(d)) if abs(a) + abs(d) >= abs(b) + abs(c) else (0, _sign(b), _sign(c), 0)
  return 1, 0, 0, 1


def _sign(x: int) -> int:
  return -1 if x < 0 else 1


def describe(matrix: tuple[int, int, int, int]) -> tuple[int, bool]:
  """(degrees counter-clockwise, mirrored left-right afterwards) of a display matrix."""
  a, b, c, d = matrix
  mirrored = a * d - b * c < 0
  if mirrored:
    a, c = -a, -c
  return {(1, 0): 0, (0, -1): 90, (-1, 0): 180, (0, 1): 270}[a, b], mirrored


def upright(frame: av.VideoFrame) -> np.ndarray:
  """RGB pixels as a player shows them."""
  image = frame.to_ndarray(format='rgb24')
  turned, mirrored = describe(display_matrix(frame))
  image = np.rot90(image, turned // 90)
  return np.ascontiguousarray(image[:, ::-1] if mirrored else image)
