"""From a video file to what comes next in it: the file is read once, from its start to its end, as a stream.

A clip ends every `spacing` seconds; it is pushed into a `streaming.Streamer`, and the answer is a row. By then the
model has been given no frame later than the end of the observation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from core.data import image, video
from core.errors import UserError
from core.train import task as contract
from video.arr import data, drawing, encoders, evaluation
from video.arr.annotations.tables import Vocabulary
from video.arr.sources import resize
from video.arr.streaming import Answer, Streamer

RANKED = 5
"""Next actions in a row."""

FASTEST, LONGEST = 30, 600.0
"""Of a captioned film: the most frames per second and the most seconds (our choice: encoding takes about as long)."""


@dataclasses.dataclass(frozen=True)
class Film:
  """What is kept of a file for its pictures.

  Attributes:
    pictures: `drawing.thumbnail` of the last frame of each step.
    fps: frames per second, on average.
    duration: seconds.
    about: one line.
  """

  pictures: list[np.ndarray]
  fps: float
  duration: float
  about: str


class VideoPredictor(contract.Predictor):
  """What comes next in video files; `finish` draws a timeline of each file and puts captions under its frames.

  A row per step: file, time (s, the end of the observation), starts_at (time + tau_a: when the action that is asked for
  starts), next_1, p_1, ... next_5, p_5 (actions by probability, "unknown" removed), verb, p_verb, noun, p_noun (the
  likeliest marginals, where actions have them), recognised, p_recognised (of the last clip; `drawing.UNKNOWN` where the
  model sees no action), latency_ms (encoder and decoder), notes (what was odd).
  """

  suffixes = video.SUFFIXES

  def __init__(self, task: Any, variables: contract.Variables, metadata: Mapping[str, Any]):
    """Asks the task for its config, grid and network alone: the data it was trained on may lie on another machine.

    Args:
      task: `task.Task`.
      variables, metadata: of a checkpoint.

    Raises:
      UserError: the run does not see pixels, or the checkpoint does not say what its classes are called.
    """
    if 'vocabulary' not in metadata:
      raise UserError(
        "The checkpoint does not say what its classes are called: the evaluator 'anticipation' never ran on it. The "
        "stage 'joint' ends with it: train with config.joint.steps > 0, or name it in config.eval.final."
      )
    self.vocabulary = Vocabulary.from_plain(metadata['vocabulary'])
    config, self.grid = task.config, task.fold.grid
    model = task.anticipator(self.vocabulary.classes)
    if not isinstance(model.encoder, encoders.Pixels):
      raise UserError(
        f"This run has the encoder '{config.model.encoder}': it was trained on feature vectors or labels, which a "
        "video file does not hold. Predict with a run of the encoder 'frame_vit' or 'tubelet_vit' (presets embedded, "
        'paper_*), or judge this one on the data it was made for, with launch.evaluate.'
      )
    self.short = config.data.pixels
    self.view = data.View(config.model.image_size, tuple(config.augment.shorter), config.augment.flip)
    self.streamer = Streamer(model, variables, self.grid)
    self._films: dict[str, Film] = {}

  def __call__(self, path: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of one video; prints its latency.

    Raises:
      UserError: it cannot be read, or is shorter than one clip.
    """
    about, damage = video.info(path), []
    rows, pictures = [], []
    with video.Seeker(path) as seeker:
      duration, ends = seeker.duration, self._ends(path, seeker.duration)
      with contextlib.closing(seeker.play(damage)) as frames:
        shots = shown(frames, [0.0, *self.grid.times(ends).ravel()])
        self.streamer.begin(self._clip([next(shots)] * self.grid.frames))
        for end in ends:
          raw = [next(shots) for _ in range(self.grid.frames)]
          rows.append(self._row(path, len(rows), float(end), self.streamer.push(self._clip(raw))))
          pictures.append(drawing.thumbnail(raw[-1]))
    if about.truncated:
      damage.append(f'truncated: the header states {about.frames_stated} frames, the file holds {about.frames}')
    for row in rows:
      row['notes'] = '; '.join([*row['notes'], *damage])
    latency = self.streamer.latency()
    print(f'{path}: {latency}', flush=True)
    told = f'{len(rows)} steps, {latency.encode + latency.decode:.0f} ms each'
    self._films[str(path)] = Film(pictures, about.frames / duration, duration, told)
    return rows

  def finish(self, rows: list[dict[str, Any]], output: pathlib.Path) -> list[pathlib.Path]:
    """Writes STEM_timeline.png and STEM_captioned.mp4 (without sound, its first `LONGEST` seconds) per served file.

    Args:
      rows: what `__call__` returned; those with 'error' are passed over.
      output: folder.
    """
    by_file: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
      if 'error' not in row:
        by_file.setdefault(str(row['file']), []).append(row)
    written: list[pathlib.Path] = []
    for (path, mine), stem in zip(by_file.items(), _stems(by_file)):
      film = self._films[path]
      written += [output / f'{stem}_timeline.png', output / f'{stem}_captioned.mp4']
      name, ahead = pathlib.PurePath(path).name, self.grid.anticipation
      title = f'{name}: what is recognised, and what is expected {ahead:g} s later'
      image.write_png(written[-2], drawing.timeline(title, film.about, mine, film.pictures))
      fps = min(max(round(film.fps), 1), FASTEST)
      video.write(written[-1], _captioned(path, mine, film, fps), fps)
    return written

  def _ends(self, path: pathlib.Path, duration: float) -> np.ndarray:
    """End times f64 [K] of the clips: the first as soon as a clip has been shown, then every `spacing` seconds."""
    first = min(self.grid.span, self.grid.spacing)
    count = math.floor((duration - first) / self.grid.spacing + 1e-6) + 1
    if count < 1:
      raise UserError(
        f"'{path}' is {duration:.2f} s long, shorter than one clip of {first:g} s: nothing to anticipate from."
      )
    return first + self.grid.spacing * np.arange(count)

  def _clip(self, frames: Sequence[np.ndarray]) -> np.ndarray:
    """Frames uint8 [H, W, 3] of any size -> uint8 [n, S, S, 3], as a judge's `data.Reader` has them."""
    return self.view(np.stack([resize(frame, self.short) for frame in frames]), None)

  def _row(self, path: pathlib.Path, step: int, end: float, answer: Answer) -> dict[str, Any]:
    names, seen = [*self.vocabulary.actions, drawing.UNKNOWN], int(answer.recognised.argmax())
    row = {'file': str(path), 'time': round(end, 3), 'starts_at': round(end + self.grid.anticipation, 3)}
    ranked = np.argsort(-answer.following, kind='stable')[:RANKED]
    for rank, action in enumerate(ranked, 1):
      row |= {f'next_{rank}': names[action], f'p_{rank}': float(answer.following[action])}
    row |= self._marginals(answer.following)
    row |= {'recognised': names[seen], 'p_recognised': float(answer.recognised[seen])}
    row['latency_ms'] = round(self.streamer.encode_ms[-1] + self.streamer.decode_ms[-1], 3)
    before = self.grid.clips - 1 - step
    padded = f'{before} of {self.grid.clips} clips lie before the film: its first frame stands for them'
    return row | {'notes': [padded] if before > 0 else []}

  def _marginals(self, following: np.ndarray) -> dict[str, Any]:
    """The likeliest verb and noun, where there are any."""
    known, row = self.vocabulary, {}
    for space, names, of in (('verb', known.verbs, known.verb_of), ('noun', known.nouns, known.noun_of)):
      if names:
        sure = evaluation.marginal(following[None], of, len(names))[0]
        row |= {space: names[sure.argmax()], f'p_{space}': float(sure.max())}
    return row


Frames = Iterable[tuple[float, Callable[[], np.ndarray]]]
"""Of `core.data.video.Seeker.play`."""


def shown(frames: Frames, times: Iterable[float]) -> Iterator[np.ndarray]:
  """The frame shown at each of some ascending times, uint8 [H, W, 3]: the latest that does not come after it.

  A frame is given before the next but one is decoded. Past the end the last one stays.
  """
  times = iter(times)
  wanted, read = next(times, None), None
  for time, following in frames:
    while read is not None and wanted is not None and wanted < time:
      yield read()
      wanted = next(times, None)
    if wanted is None:
      return
    read = following
  while wanted is not None and read is not None:
    yield read()
    wanted = next(times, None)


def _captioned(path: str, steps: list[dict[str, Any]], film: Film, fps: int) -> Iterator[np.ndarray]:
  """The film's frames at a constant rate, each above what was known when it was shown."""
  ends, shades = np.array([step['time'] for step in steps]), drawing.step_colors(steps)
  times = np.arange(0, min(film.duration, LONGEST), 1 / fps)
  panels: dict[int, np.ndarray] = {}
  with video.Seeker(path) as seeker, contextlib.closing(seeker.play([])) as frames:
    for time, frame in zip(times, shown(frames, times)):
      last = int(np.searchsorted(ends, time, side='right')) - 1
      if last not in panels:
        step = steps[last] if last >= 0 else None
        ahead = steps[0]['starts_at'] - steps[0]['time']
        panels = {last: drawing.panel(step, drawing.panel_width(frame.shape[1]), shades, ahead)}
      yield drawing.captioned(frame, panels[last])


def _stems(paths: Iterable[str]) -> list[str]:
  """Names without endings; a number is added to one that came before in another folder."""
  stems: list[str] = []
  for path in paths:
    stem, name, number = pathlib.PurePath(path).stem, pathlib.PurePath(path).stem, 2
    while name in stems:
      name, number = f'{stem}_{number}', number + 1
    stems.append(name)
  return stems
