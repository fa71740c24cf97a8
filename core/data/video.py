"""Videos in and out, through PyAV: frames as uint8 RGB arrays [H, W, 3], upright by the container's rotation tag.

Frames are counted in presentation order from 0, times in seconds from the first frame. Nothing trusts the container's
own frame count: packets are counted (without decoding), which also tells a truncated file from a short one.

`frames` takes frames by number and decodes from the start; `at_times` takes them by time, from the key frame before,
and never touches what lies behind a limit (the future that a predictor must not see).
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import warnings
from collections.abc import Iterable, Iterator, Sequence

import av
import numpy as np

from core.data.container import describe, display_matrix, open_file, packets_of, upright, video_stream
from core.data.seek import Seeker, at_times, duration
from core.errors import UserError

__all__ = [
  'CODECS',
  'SUFFIXES',
  'Info',
  'Seeker',
  'at_times',
  'duration',
  'frames',
  'info',
  'iterate',
  'linspace_indices',
  'write',
]

SUFFIXES = ('.avi', '.mov', '.mp4', '.m4v', '.mkv', '.webm', '.mpg', '.mpeg', '.wmv')
"""Lower-case endings that are taken for videos."""

CODECS = {'.avi': 'mjpeg', '.mov': 'mpeg4', '.mp4': 'h264', '.m4v': 'h264', '.mkv': 'h264'}
"""Default encoder per container for `write`."""

_PIXEL_FORMATS = {'mjpeg': 'yuvj420p', 'rawvideo': 'bgr24', 'ffv1': 'bgr0'}


@dataclasses.dataclass(frozen=True)
class Info:
  """What a video says of itself and what is really in it.

  Attributes:
    path: the file.
    width: pixels, as displayed (after the rotation tag).
    height: pixels, as displayed.
    frames: video packets found in the file, i.e. frames that can be asked for if they decode.
    frames_stated: the container's own count; 0 where it states none.
    fps: average frames per second; 0 where unknown.
    codec: the codec's name.
    rotation: degrees by which the frames are turned counter-clockwise for display (0, 90, 180, 270).
    mirrored: whether the display matrix also mirrors.
  """

  path: str
  width: int
  height: int
  frames: int
  frames_stated: int
  fps: float
  codec: str
  rotation: int
  mirrored: bool

  @property
  def truncated(self) -> bool:
    """Whether the file holds fewer frames than its header promises."""
    return self.frames < self.frames_stated


def info(path: str | pathlib.Path) -> Info:
  """Reads the header, counts the packets and decodes one frame (the rotation tag travels with frames).

  Raises:
    UserError: missing, empty, no video, not one decodable frame.
  """
  with open_file(path) as container:
    stream = video_stream(container, path)
    packets = sum(packet.size > 0 for packet in packets_of(container, stream))
    stated, fps = stream.frames, float(stream.average_rate or 0)
    codec = stream.codec_context.name
  with contextlib.closing(_decoded(path, [])) as decoder:
    _, first = next(decoder, (0, None))
  if first is None:
    raise UserError(f"'{path}' has no frame that can be decoded ({packets} packets, codec {codec}); is it truncated?")
  matrix = display_matrix(first)
  turned, mirrored = describe(matrix)
  width, height = (first.height, first.width) if turned % 180 else (first.width, first.height)
  return Info(str(path), width, height, packets, stated, fps, codec, turned, mirrored)


def linspace_indices(total: int, count: int) -> list[int]:
  """`count` frame numbers spread over 0..total-1, both ends included, repeats dropped (spec section 4)."""
  return sorted({int(i) for i in np.linspace(0, max(total - 1, 0), min(count, total))})


def frames(
  path: str | pathlib.Path,
  indices: Sequence[int] | None = None,
  *,
  linspace: int | None = None,
  problems: list[str] | None = None,
) -> list[tuple[int, np.ndarray]]:
  """Decodes chosen frames, upright.

  Decoding runs from the start, so that a frame number is exact whatever the codec's key frames are.

  Args:
    path: video file.
    indices: frame numbers to return; those beyond the end are reported as a problem.
    linspace: instead of `indices`, this many frames spread evenly over the frames that really are in the file. Without
      both, all frames (use `iterate` for long videos).
    problems: damage is described here, a line each (truncation, undecodable packets, missing frames). Without it damage
      is a Python warning: it is never silent.

  Returns:
    [(frame number, uint8 [H, W, 3])], ascending.

  Raises:
    UserError: missing, empty, no video, not one decodable frame.
  """
  if indices is not None and linspace is not None:
    raise ValueError('Give `indices` or `linspace`, not both.')
  about = info(path)
  damage: list[str] = []
  if about.truncated:
    damage.append(f'truncated: the header states {about.frames_stated} frames, the file holds {about.frames}')
  if linspace is not None:
    wanted = set(linspace_indices(about.frames, linspace))
  else:
    wanted = set(range(about.frames)) if indices is None else {int(i) for i in indices}
  found, decoded = _collect(path, wanted, damage)
  if linspace is not None and decoded < about.frames and len(found) < len(wanted):
    # Packets that do not decode moved the end forward: spread over what did decode.
    wanted = set(linspace_indices(decoded, linspace))
    found, _ = _collect(path, wanted, [])
  lost = sorted(wanted - {i for i, _ in found})
  if lost:
    damage.append(f'{len(lost)} of {len(wanted)} frames not there (first: {lost[0]}; {decoded} frames decoded)')
  if problems is not None:
    problems.extend(damage)
  elif damage:
    warnings.warn(f"'{path}': {'; '.join(damage)}", stacklevel=2)
  return found


def _collect(path: str | pathlib.Path, wanted: set[int], damage: list[str]) -> tuple[list[tuple[int, np.ndarray]], int]:
  """The wanted frames and how many were decoded on the way; stops after the last wanted one."""
  found, decoded, last = [], 0, max(wanted, default=-1)
  with contextlib.closing(_decoded(path, damage)) as stream:
    for index, frame in stream:
      decoded = index + 1
      if index in wanted:
        found.append((index, upright(frame)))
      if index >= last:
        break
  return found, decoded


def iterate(path: str | pathlib.Path) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (frame number, uint8 [H, W, 3]) one by one, upright; damage is a warning at the end."""
  damage: list[str] = []
  for index, frame in _decoded(path, damage):
    yield index, upright(frame)
  if damage:
    warnings.warn(f"'{path}': {'; '.join(damage)}", stacklevel=2)


def write(
  path: str | pathlib.Path,
  images: Iterable[np.ndarray],
  fps: int = 25,
  codec: str | None = None,
  *,
  rotation: int = 0,
  mirrored: bool = False,
) -> None:
  """Encodes uint8 [H, W, 3] frames of one size.

  Args:
    path: its ending chooses the container; avi carries no rotation tag.
    images: frames; sides are cropped to even numbers where the codec subsamples colour.
    fps: frames per second.
    codec: encoder name; the container's default in `CODECS` otherwise.
    rotation: tag: degrees counter-clockwise by which a player must turn the STORED frames to show them upright. The
      frames are stored as given.
    mirrored: tag: a player mirrors left and right after turning.
  """
  path = pathlib.Path(path)
  suffix = path.suffix.lower()
  if codec is None and suffix not in CODECS:
    raise UserError(f"No default codec for '{path.name}'; use one of {', '.join(CODECS)} or name a codec.")
  if (rotation or mirrored) and suffix == '.avi':
    raise UserError(f"'{path.name}': avi has no rotation tag; use mp4, mov or mkv.")
  codec = codec or CODECS[suffix]
  path.parent.mkdir(parents=True, exist_ok=True)
  pixel_format = _PIXEL_FORMATS.get(codec, 'yuv420p')
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=fps)
    stream.pix_fmt = pixel_format
    if rotation or mirrored:
      stream.set_display_rotation(rotation, hflip=mirrored)
    stream.bit_rate = 4_000_000
    for i, image in enumerate(images):
      if '420' in pixel_format:
        image = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
      if i == 0:
        stream.height, stream.width = image.shape[:2]
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format='rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _decoded(path: str | pathlib.Path, damage: list[str]) -> Iterator[tuple[int, av.VideoFrame]]:
  """Decodes from the start; packets that do not decode and frames that decode with errors are counted in `damage`.

  A packet that does not decode gives no frame: the numbers of the later ones then lag behind.
  """
  broken = corrupt = index = 0
  try:
    with open_file(path) as container:
      stream = video_stream(container, path)
      for packet in packets_of(container, stream):
        try:
          decoded = stream.decode(packet)
        except av.error.FFmpegError:
          broken += 1
          continue
        for frame in decoded:
          corrupt += frame.is_corrupt
          yield index, frame
          index += 1
  finally:  # also when the caller has enough frames and closes the generator
    if broken:
      damage.append(f'{broken} packets could not be decoded')
    if corrupt:
      damage.append(f'{corrupt} frames decoded with errors')
