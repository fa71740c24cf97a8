"""Position embeddings for another grid: bicubic, with the conventions of torch's `interpolate(align_corners=False)`."""

from __future__ import annotations

import math

import numpy as np

from core.errors import UserError
from core.nn.resize import bicubic_matrix


def positions(
  embedding: np.ndarray,
  prefix: int,
  grid: tuple[int, int],
  source_grid: tuple[int, int] | None = None,
  *,
  antialias: bool,
) -> tuple[np.ndarray, str]:
  """Resizes the grid part of an embedding; the `prefix` rows before it are kept.

  Args:
    embedding: [1, prefix + rows * columns, C].
    prefix: number of tokens without a place.
    grid: (rows, columns) wanted.
    source_grid: (rows, columns) of the embedding; None: `grid` itself where the number of places agrees, else a square.
    antialias: as torch's flag: also chooses the cubic (a = -0.5 with, -0.75 without).

  Returns:
    ([1, prefix + rows * columns wanted, C], f32 if resized; remark for the account, '' if not resized).
  """
  count = embedding.shape[1] - prefix
  if source_grid is None:
    source_grid = grid if count == grid[0] * grid[1] else (square(count, 'position embedding'),) * 2
  rows, columns = source_grid
  if rows * columns != count:
    raise UserError(f'the position embedding has {count} places, which is not the grid {rows}x{columns} of the source.')
  if source_grid == tuple(grid):
    return embedding, ''
  head, body = embedding[:, :prefix].astype(np.float32), embedding[0, prefix:].astype(np.float64)
  body = body.reshape(rows, columns, -1)
  body = np.einsum('ri,ijc->rjc', bicubic_matrix(rows, grid[0], antialias), body)
  body = np.einsum('sj,rjc->rsc', bicubic_matrix(columns, grid[1], antialias), body)
  body = body.reshape(1, grid[0] * grid[1], -1).astype(np.float32)
  remark = f'resized {rows}x{columns} -> {grid[0]}x{grid[1]}, bicubic{", antialiased" if antialias else ""}'
  return np.concatenate([head, body], axis=1), remark


def square(count: int, what: str) -> int:
  """The side of a square grid of `count` places."""
  side = math.isqrt(count)
  if side * side != count:
    raise UserError(f'{what}: {count} places are no square grid; say which grid it is (source_grid).')
  return side
