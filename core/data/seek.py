"""Frames of a video by time: from the key frame before, decoded forward, and never past a limit."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import pathlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import av
import numpy as np

from core.data.container import open_file, packets_of, upright, video_stream
from core.errors import UserError

_DEEPEST_REORDER = 16
"""Frames by which decoding may run ahead of presentation: the decoded picture buffer of H.264 and H.265."""


class _Key(NamedTuple):
  """A key frame: where to seek to land on it, its presentation time and its length in ticks."""

  target: int
  tick: int
  length: int


class Seeker:
  """One video, kept open: the frame shown at any time. For one thread at a time.

  The frame shown at time t is the latest one whose presentation time is at most t; time 0 is the first frame's. That is
  exact for any frame rate, constant or not, any distance of key frames and any reordering. Where a seek would not be,
  the file is read from its start: exact too, but slow. That is so for avi with B-frames (states no presentation times:
  its frames are counted), for MPEG program and transport streams, and where key frames are none (intra refresh).

  Attributes:
    path: the file.
    decoded: packets given to the decoder so far: the work done.
  """

  def __init__(self, path: str | pathlib.Path):
    self.path, self.decoded = str(path), 0
    self._container, self._counted = None, False
    try:
      self._reopen()
      head, stream, form = self._head(), self._stream, self._container.format.name
      rate, reordered = stream.average_rate, stream.codec_context.has_b_frames
      self._counted = any(packet.pts is None for packet in head) or (form == 'avi' and reordered)
      self._seekable = not self._counted and not form.startswith('mpeg')
      if self._counted and not rate:
        raise UserError(f"'{path}' states neither presentation times nor a frame rate; convert it to mp4.")
      self._tick = 1 / rate if self._counted else stream.time_base  # seconds, a fraction
      self._start = 0 if self._counted else min(packet.pts for packet in head)
    except BaseException:
      self.close()
      raise

  def __enter__(self) -> Seeker:
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def close(self) -> None:
    """Closes the file."""
    if self._container is not None:
      self._container.close()

  @functools.cached_property
  def duration(self) -> float:
    """Seconds from the first frame to the end of the last that is in the file; from its packets, without decoding."""
    key = self._key_before(math.inf)  # leaves the file just behind that key frame
    if key is None:
      self._reopen()
    end = self._start if key is None else key.tick + key.length
    for number, packet in enumerate(self._packets()):
      if self._counted:
        end = number + 1
      elif packet.pts is not None:
        end = max(end, packet.pts + self._length(packet))
    return self._seconds(end)

  def at(
    self,
    times: Sequence[float],
    *,
    limit: float | None = None,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
    problems: list[str] | None = None,
  ) -> list[np.ndarray]:
    """The frames shown at `times`, upright.

    Args:
      times: seconds, in any order; those before the first frame give the first, those past the end the last.
      limit: seconds; no later frame is returned, whatever the times. A packet of a later frame is decoded only where
        the codec puts it before a packet that is needed.
      transform: applied to each frame as soon as it is found (a resize keeps memory small).
      problems: damage and times past the end are described here, a line each; without it they are a Python warning.

    Returns:
      uint8 [H, W, 3], or what `transform` makes of it, per time; times that show one frame share one array.

    Raises:
      UserError: no frame at or before `limit` can be decoded.
    """
    ceiling = math.inf if limit is None else float(limit)
    if ceiling < 0:
      raise UserError(f"'{self.path}' shows nothing at or before {ceiling:g} s: its first frame comes at 0 s.")
    wanted = [min(max(float(t), 0.0), ceiling) for t in times]
    if not all(map(math.isfinite, wanted)):
      raise ValueError(f'Times must be finite seconds, got {list(times)}.')
    damage: list[str] = []
    shown: dict[float, np.ndarray] = {}
    for key, group in self._plan(sorted(set(wanted))):
      shown |= _Reading(self, group, ceiling, transform, damage).run(key)
    damage = list(dict.fromkeys(damage))  # a second try meets the same again
    late = [t for t in wanted if t >= self.duration]
    if late:
      damage.append(f'{len(late)} times past the end ({max(late):g} s of {self.duration:g} s) give the last frame')
    if problems is not None:
      problems.extend(damage)
    elif damage:
      warnings.warn(f"'{self.path}': {'; '.join(damage)}", stacklevel=2)
    return [shown[t] for t in wanted]

  def play(self, problems: list[str] | None = None) -> Iterator[tuple[float, Callable[[], np.ndarray]]]:
    """All frames in the order of presentation, each decoded when it is asked for.

    Args:
      problems: damage is described here when the last frame has been given; without it, it is a Python warning.

    Yields:
      (seconds, a function that gives its pixels, uint8 [H, W, 3], upright): a frame that is only passed costs no
      conversion.
    """
    damage: list[str] = [] if problems is None else problems
    with contextlib.closing(self._frames(None, math.inf, damage)) as frames:
      for time, frame in frames:
        yield time, functools.partial(upright, frame)
    if damage and problems is None:
      warnings.warn(f"'{self.path}': {'; '.join(damage)}", stacklevel=2)

  def _seconds(self, tick: int) -> float:
    return (tick - self._start) * self._tick.numerator / self._tick.denominator

  def _length(self, packet: av.Packet) -> int:
    """Ticks for which a packet's frame is shown."""
    rate = self._stream.average_rate
    return packet.duration or (round(1 / rate / self._stream.time_base) if rate else 0)

  def _packets(self) -> Iterator[av.Packet]:
    return (packet for packet in packets_of(self._container, self._stream) if packet.size)

  def _reopen(self) -> None:
    self.close()
    self._container = open_file(self.path)
    self._stream = video_stream(self._container, self.path)
    # Threads that take a frame each lose those in flight where a file is cut off, so that what is shown would depend on
    # the number of cores; they also run ahead of what is asked for (four short runs in a 720p film: 0.7 s, not 0.5 s).
    self._stream.thread_type = 'SLICE'

  def _head(self) -> list[av.Packet]:
    """Packets from the start up to where no later one can be presented before them."""
    head: list[av.Packet] = []
    for packet in self._packets():
      if packet.is_discard:  # cut off by an edit list
        continue
      head.append(packet)
      first = min((p.pts for p in head if p.pts is not None), default=None)
      if len(head) > _DEEPEST_REORDER or (None not in (first, packet.dts) and packet.dts >= first):
        break
    if not head:
      raise UserError(f"'{self.path}' holds no video packet; it was cut off: copy or download it again.")
    return head

  def _plan(self, times: Sequence[float]) -> Iterator[tuple[_Key | None, list[float]]]:
    """Ascending times by the key frame to decode from; None stands for the start of the file."""
    keys = [self._key_before(time) for time in times]
    for _, group in itertools.groupby(zip(keys, times), lambda pair: pair[0] and pair[0].tick):
      group = list(group)
      yield group[0][0], [time for _, time in group]

  def _key_before(self, time: float) -> _Key | None:
    """The last key frame at or before `time`; None: only the start of the file will do.

    Containers seek by decoding time, roughly, or to a cue: the landing is looked at, and left backwards if it is late.
    """
    if not self._seekable:
      return None
    unit = self._stream.time_base
    if time < math.inf:
      target = self._start + int(time / unit)
    else:
      target = self._start + (self._stream.duration or int((self._container.duration or 0) * 1e-6 / unit))
    back = 1
    while target >= self._start:
      key = self._land(target)
      if key is not None and self._seconds(key.pts) <= time:
        return _Key(target, key.pts, self._length(key))
      target = min(target, target if key is None or key.dts is None else key.dts) - back
      back *= 8
    return None

  def _land(self, target: int) -> av.Packet | None:
    """Seeks, and reads up to the first key packet there."""
    try:
      self._container.seek(target, stream=self._stream, backward=True)
    except av.error.FFmpegError:
      return None
    return next((packet for packet in self._packets() if packet.is_keyframe and packet.pts is not None), None)

  def _fed(self, key: _Key | None, end: float) -> Iterator[av.Packet | None]:
    """Packets in the order of decoding from a key frame on, later ones than `end` only where needed; then None."""
    if key is None:
      self._reopen()
    else:
      self._container.seek(key.target, stream=self._stream, backward=True)
    begun, held = key is None, []
    for packet in self._packets():
      begun = begun or packet.is_keyframe
      if not begun:
        continue
      if self._counted:
        if self._seconds(self._count) > end:
          break
        yield packet
        continue
      # Decoding times ascend and no frame is shown before it is decoded: behind this packet all are too late.
      if (packet.dts is not None and self._seconds(packet.dts) > end) or len(held) > _DEEPEST_REORDER:
        break
      held.append(packet)
      if packet.pts is None or self._seconds(packet.pts) <= end:
        yield from held
        held = []
    yield None

  def _frames(self, key: _Key | None, end: float, damage: list[str]) -> Iterator[tuple[float, av.VideoFrame]]:
    """Decoded frames in the order of presentation, with their times."""
    broken, self._count = 0, 0
    try:
      for packet in self._fed(key, end):
        self.decoded += packet is not None
        try:
          decoded = self._stream.decode(packet)
        except av.error.FFmpegError:
          broken += 1
          continue
        for frame in decoded:
          tick = self._count if self._counted else frame.pts
          self._count += 1
          # Frames shown before the key frame but decoded after it refer to what lies before it.
          if tick is not None and (key is None or tick >= key.tick):
            yield max(self._seconds(tick), 0.0), frame
    finally:
      if broken:
        damage.append(f'{broken} packets could not be decoded')


class _Reading:
  """One run forward through a video that serves ascending times."""

  def __init__(self, seeker: Seeker, times: list[float], ceiling: float, transform: Any, damage: list[str]):
    self.seeker, self.times, self.ceiling, self.transform, self.damage = seeker, times, ceiling, transform, damage

  def run(self, key: _Key | None) -> dict[float, np.ndarray]:
    """Time -> what is shown then."""
    end = self.times[-1]
    # Where the key frame does not decode: from the start; where the start does not, what comes first after it.
    for start, until, strict in ((key, end, True), (None, end, True), (None, self.ceiling, False)):
      shown = self._forward(start, until, strict)
      if shown is not None:
        return shown
    seeker = self.seeker
    until = min(self.ceiling, seeker.duration)
    raise UserError(f"'{seeker.path}' has no frame at or before {until:g} s that can be decoded.")

  def _forward(self, key: _Key | None, end: float, strict: bool) -> dict[float, np.ndarray] | None:
    """None when nothing decodes; with `strict` also when the key frame or all before the first time does not."""
    shown: dict[float, np.ndarray] = {}
    waiting, latest = list(self.times), None
    due = self.times[0] if key is None else max(self.seeker._seconds(key.tick), 0.0)  # an edit list may cut the key off
    with contextlib.closing(self.seeker._frames(key, end, self.damage)) as frames:
      for time, frame in frames:
        if latest is None and time > due:
          if strict:
            return None
          if time > self.ceiling:
            break
          self.damage.append(f'no frame before {time:g} s can be decoded')
        if latest is not None and time > waiting[0]:
          shown |= self._show(latest, [t for t in waiting if t < time])
          waiting = [t for t in waiting if t >= time]
        if not waiting:
          return shown
        if latest is None or time > latest[0]:
          latest = time, frame
    return None if latest is None else shown | self._show(latest, waiting)

  def _show(self, latest: tuple[float, av.VideoFrame], times: list[float]) -> dict[float, np.ndarray]:
    time, frame = latest
    if frame.is_corrupt:
      self.damage.append(f'the frame at {time:g} s decoded with errors')
    image = upright(frame)
    return dict.fromkeys(times, image if self.transform is None else self.transform(image))


def at_times(
  path: str | pathlib.Path,
  times: Sequence[float],
  *,
  limit: float | None = None,
  problems: list[str] | None = None,
) -> list[np.ndarray]:
  """`Seeker.at` on a file that is opened for this once."""
  with Seeker(path) as seeker:
    return seeker.at(times, limit=limit, problems=problems)


def duration(path: str | pathlib.Path) -> float:
  """Seconds from the first frame to the end of the last one that is in the file."""
  with Seeker(path) as seeker:
    return seeker.duration
