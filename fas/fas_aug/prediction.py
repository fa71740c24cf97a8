"""From a user's photos and videos to decisions: find the face, cut it like a training crop, score it, draw a sheet.

A photo gives a row per face. A video gives a row for the whole (mean of its frames, spec section 5) and a row per frame
that was looked at; of each frame the most prominent face counts, as in the training records.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import textwrap
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from core.data import face, image, video
from core.data.antispoofing import detection, sources
from core.data.drawing import font, shorten, wrapped
from core.errors import UserError
from core.train import task as contract
from fas.fas_aug import evaluation
from fas.fas_aug.drawing import COLORS

BATCH = 8
"""Faces scored in one go."""

OTHER_FACES = 0.4
"""A further face of a photo counts from this share of the first one's detector score. Haar's false boxes in our 15
sample photos had 0.03 to 0.19 of it; a second person has about as much as the first (our choice)."""

TILE, PICTURE, MARGIN, COLUMNS, PAGE = 248, 196, 12, 6, 48
"""Of a contact sheet: width of a tile and height of its picture in pixels, gap, tiles per row and per page."""


class FacePredictor(contract.Predictor):
  """Scores faces in photos and videos; `finish` draws what was seen.

  Rows, all with the same keys: file, kind ('face' or 'video'), frame (number in its video, 0 for photos; None for the
  whole video), box ([x, y, width, height] in pixels of the upright picture), live_score (P(live)), decision ('live' or
  'spoof'), threshold (single faces and means of videos have their own), notes (what was odd about the file).
  """

  suffixes = image.SUFFIXES + video.SUFFIXES

  def __init__(self, classifier: Any, variables: contract.Variables, config: Any, metadata: Mapping[str, Any]):
    """Args: metadata: of the checkpoint, with the thresholds that `evaluation.Judge` stored."""
    self.scorer, self.variables = evaluation.Scorer(classifier, BATCH), variables
    self.detector = face.build_detector(config.data.detector)
    self.size, self.margin, self.frames = config.data.size, config.data.margin, config.data.frames_per_video
    self.thresholds = {
      'face': float(metadata.get('frame_threshold', 0.5)),
      'video': float(metadata.get('threshold', 0.5)),
    }
    self.chosen_by = metadata.get('threshold_from', 'fixed at 0.5: the checkpoint holds none (it was never evaluated)')
    self._views: dict[str, View] = {}

  def __call__(self, path: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of one photo or video.

    Raises:
      UserError: unreadable, or no face in it.
    """
    return self._photo(path) if path.suffix.lower() in image.SUFFIXES else self._video(path)

  def finish(self, rows: list[dict[str, Any]], output: pathlib.Path) -> list[pathlib.Path]:
    """Draws contact sheets: each file with its boxes, score and decision, a file with 'error' as a grey tile.

    Args:
      rows: what `__call__` returned, and {'file', 'error': reason} of every file that could not be served.
      output: folder of contact_sheet.png, or of contact_sheet_1.png, ... where there are many files.
    """
    by_file: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
      by_file.setdefault(str(row['file']), []).append(row)
    tiles = [draw_tile(name, mine, self._views.get(name)) for name, mine in by_file.items()]
    first = [mine[0].get('decision', 'error') for mine in by_file.values()]
    counts = f'{first.count("live")} live, {first.count("spoof")} spoof, {first.count("error")} not served'
    title = f'{_count(len(first), "file")}: {counts}'
    pages, written = [tiles[i : i + PAGE] for i in range(0, len(tiles), PAGE)], []
    for number, page in enumerate(pages, 1):
      name = 'contact_sheet.png' if len(pages) == 1 else f'contact_sheet_{number}.png'
      image.write_png(output / name, draw_sheet(page, title, self._explanation()))
      written.append(output / name)
    return written

  def _photo(self, path: pathlib.Path) -> list[dict[str, Any]]:
    picture = image.read(path)
    faces = self.detector.detect(picture)
    if not faces:
      raise UserError(self._no_face(path, f'in {picture.shape[1]}x{picture.shape[0]} pixels'))
    faces = [each for i, each in enumerate(faces) if i == 0 or each.score >= OTHER_FACES * faces[0].score]
    scores = self.scorer(self.variables, np.stack([face.crop(picture, f, self.size, self.margin) for f in faces]))
    rows = [self._row(path, 'face', s, frame=0, box=f.box) for f, s in zip(faces, scores)]
    self._views[str(path)] = View.of(picture, rows, f'photo, {_count(len(faces), "face")}')
    return rows

  def _video(self, path: pathlib.Path) -> list[dict[str, Any]]:
    source, notes = sources.open_source(path), []
    chosen = [source.numbers[i] for i in video.linspace_indices(len(source.numbers), self.frames)]
    pictures = source.read(chosen, notes)
    found = detection.find(source, pictures, self.detector, lambda kind, detail: notes.append(f'{kind}: {detail}'))
    if not found:
      raise UserError(self._no_face(path, f'in {_count(len(pictures), "frame")} and their neighbours'))
    scores = self.scorer(self.variables, np.stack([each.crop(self.size, self.margin) for each in found]))
    rows = [self._row(path, 'face', s, frame=f.number, box=f.faces[0].box) for f, s in zip(found, scores)]
    whole = self._row(path, 'video', float(np.mean(scores)), notes='; '.join(notes))
    middle = len(found) // 2
    about = f'video, mean of {_count(len(found), "frame")}, frame {found[middle].number} shown'
    self._views[str(path)] = View.of(found[middle].picture, [rows[middle]], about)
    return [whole, *rows]

  def _row(self, path: pathlib.Path, kind: str, score: float, frame=None, box=None, notes: str = '') -> dict[str, Any]:
    threshold = self.thresholds[kind]
    return {
      'file': str(path),
      'kind': kind,
      'frame': frame,
      'box': None if box is None else [round(v) for v in box],
      'live_score': float(score),
      'decision': 'live' if score >= threshold else 'spoof',
      'threshold': threshold,
      'notes': notes,
    }

  def _no_face(self, path: pathlib.Path, where: str) -> str:
    return (
      f"'{path}': no face found {where} (detector '{self.detector.name}'). It looks for upright frontal faces of at"
      ' least a tenth of the shorter side; another may see more: config.data.detector, the path of a YuNet .onnx file.'
    )

  def _explanation(self) -> str:
    one, whole = self.thresholds['face'], self.thresholds['video']
    return f'live from a score of {one:.3f} (face) or {whole:.3f} (mean of a video); threshold: {self.chosen_by}'


@dataclasses.dataclass(frozen=True)
class View:
  """What a contact sheet keeps of a file: a small picture and what was decided where.

  Attributes:
    picture: uint8 [h, w, 3], within a tile's picture area.
    boxes: (x, y, width, height) in its pixels, score, decision, of each face.
    about: one line.
  """

  picture: np.ndarray
  boxes: tuple[tuple[tuple[float, ...], float, str], ...]
  about: str

  @classmethod
  def of(cls, picture: np.ndarray, rows: list[dict[str, Any]], about: str) -> View:
    """Shrinks a picture with the faces of its rows."""
    height, width = picture.shape[:2]
    scale = min(TILE / width, PICTURE / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    boxes = tuple((tuple(v * scale for v in row['box']), row['live_score'], row['decision']) for row in rows)
    return cls(small, boxes, about)


# Drawing.


def draw_tile(name: str, rows: list[dict[str, Any]], view: View | None) -> np.ndarray:
  """One file: uint8 [H, TILE, 3]. The first row decides: a video's own, or a photo's most prominent face."""
  tile = Image.new('RGB', (TILE, PICTURE + 66), 'white')
  draw, first = ImageDraw.Draw(tile), rows[0]
  kind = first.get('decision', 'error')
  if view is not None:
    corner = ((TILE - view.picture.shape[1]) // 2, (PICTURE - view.picture.shape[0]) // 2)
    draw.rectangle((0, 0, TILE, PICTURE - 1), fill=(236, 236, 236))
    tile.paste(Image.fromarray(view.picture), corner)
    for box, score, decision in view.boxes:
      _draw_box(draw, corner, box, f'{score:.2f}' if len(view.boxes) > 1 else '', COLORS[decision])
  else:
    draw.rectangle((0, 0, TILE, PICTURE - 1), fill=(214, 214, 214))
    reason = str(first.get('error', 'no picture kept')).replace(name, pathlib.PurePath(name).name)
    lines = textwrap.wrap(reason, 33, break_on_hyphens=False)
    lines = lines if len(lines) <= 10 else [*lines[:9], lines[9][:30] + ' …']
    draw.multiline_text((10, 10), '\n'.join(lines), font=font(13), fill=(40, 40, 40), spacing=4)
  draw.rectangle((0, PICTURE, TILE, PICTURE + 25), fill=COLORS[kind])
  verdict = 'not served' if kind == 'error' else f'{kind}  {first["live_score"]:.3f}'
  draw.text((8, PICTURE + 3), verdict, font=font(16, bold=True), fill='white')
  draw.text((0, PICTURE + 29), shorten(pathlib.PurePath(name).name, 13, TILE), font=font(13), fill='black')
  about = '' if view is None else view.about
  draw.text((0, PICTURE + 47), shorten(about, 12, TILE), font=font(12), fill=(90, 90, 90))
  return np.asarray(tile)


def _draw_box(draw: ImageDraw.ImageDraw, corner: tuple[int, int], box: tuple[float, ...], text: str, color) -> None:
  """A frame with a white rim, seen on any picture, and a score on it."""
  x, y = corner[0] + box[0], corner[1] + box[1]
  draw.rectangle((x - 1, y - 1, x + box[2] + 1, y + box[3] + 1), outline='white', width=5)
  draw.rectangle((x, y, x + box[2], y + box[3]), outline=color, width=3)
  if text:
    draw.rectangle((x, y, x + 36, y + 17), fill=color)
    draw.text((x + 3, y + 1), text, font=font(13, bold=True), fill='white')


def draw_sheet(tiles: list[np.ndarray], title: str, explanation: str) -> np.ndarray:
  """Tiles in rows under a heading: uint8 [H, W, 3]."""
  columns = min(COLUMNS, max(3, math.ceil(math.sqrt(len(tiles)))))
  height, width = (tiles[0].shape[0] + MARGIN), columns * (TILE + MARGIN) + MARGIN
  lines = wrapped(explanation, 13, width - 2 * MARGIN)
  top = 48 + 18 * len(lines)
  sheet = Image.new('RGB', (width, top + math.ceil(len(tiles) / columns) * height), 'white')
  draw = ImageDraw.Draw(sheet)
  draw.text((MARGIN, 10), title, font=font(20, bold=True), fill='black')
  draw.multiline_text((MARGIN, 38), '\n'.join(lines), font=font(13), fill=(70, 70, 70), spacing=4)
  for i, tile in enumerate(tiles):
    row, column = divmod(i, columns)
    sheet.paste(Image.fromarray(tile), (MARGIN + column * (TILE + MARGIN), top + row * height))
  return np.asarray(sheet)


def _count(number: int, what: str) -> str:
  return f'{number} {what}{"" if number == 1 else "s"}'
