"""Clue injection (spec 3.6): film and clues as embeddings of the language model, inside R2GenGPT's prompt.

  [BOS] Human: <Img> H_v </Img> <Clue> H_z,1 name_1, ... </Clue> instruction \\nAssistant:        then the report

  H_v = LN(W_p V'),  H_z = LN(W_z Z)

Each clue is a soft token, the embeddings of its name, and a comma; without clues it says "no abnormal clue". Every
sample has the same places, of which a mask says which are filled: positions count the filled ones alone, so this equals
packing them to the left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError
from multimodal.trrg.interaction import linear, norm
from multimodal.trrg.observations import NAMES

INSTRUCTION = 'Generate a comprehensive and detailed diagnosis report for this chest xray image.'
"""R2GenGPT's."""
NO_CLUE = 'no abnormal clue'


@dataclasses.dataclass(frozen=True)
class Template:
  """The fixed pieces of the prompt, as token ids.

  Attributes:
    before: up to the film.
    between: from the film to the clues.
    names: i32 [13, L_n], what each clue is called, and `name_mask` bool [13, L_n].
    comma: behind each name.
    none: what stands in the place of clues where there are none.
    after: from the clues to the report.
    plain: from the film to the report where no clue is injected.
    bos: stands first; None where the tokenizer has no such token.
  """

  before: tuple[int, ...]
  between: tuple[int, ...]
  names: np.ndarray
  name_mask: np.ndarray
  comma: tuple[int, ...]
  none: tuple[int, ...]
  after: tuple[int, ...]
  plain: tuple[int, ...]
  bos: int | None = None

  @property
  def start(self) -> tuple[int, ...]:
    """What stands before the film."""
    return self.before if self.bos is None else (self.bos, *self.before)


def template(
  encode: Callable[[str], Sequence[int]],
  instruction: str = INSTRUCTION,
  *,
  bos: int | None = None,
  names: Sequence[str] = NAMES,
) -> Template:
  """The pieces by a tokenizer's `encode`, which adds no special tokens, and its `bos`.

  Raises:
    UserError: a piece has no token.
  """

  def ids(text: str) -> tuple[int, ...]:
    tokens = tuple(int(token) for token in encode(text))
    if not tokens:
      raise UserError(f'the tokenizer makes nothing of {text!r}, a piece of the prompt: use another tokenizer.')
    return tokens

  tail = f'{instruction} \nAssistant:'
  named = [ids(name) for name in names]
  table = np.zeros((len(named), max(map(len, named))), np.int32)
  mask = np.arange(table.shape[1]) < np.array([len(tokens) for tokens in named])[:, None]
  table[mask] = np.concatenate(named)
  return Template(
    before=ids('Human: <Img>'),
    between=ids('</Img> <Clue>'),
    names=table,
    name_mask=mask,
    comma=ids(','),
    none=ids(NO_CLUE),
    after=ids(f'</Clue> {tail}'),
    plain=ids(f'</Img> {tail}'),
    bos=bos,
  )


class Injection(nn.Module):
  """Film and clues in the language model's space; `width` is D."""

  width: int

  @nn.compact
  def __call__(self, visual: jax.Array, slots: jax.Array) -> tuple[jax.Array, jax.Array]:
    """V' [B, N, d_v], Z [B, C, d] -> (H_v [B, N, D], H_z [B, C, D]), f32."""
    visual = linear(self.width, name='visual')(visual.astype(jnp.float32))
    slots = linear(self.width, name='clues')(slots.astype(jnp.float32))
    return norm(name='norm_visual')(visual), norm(name='norm_clues')(slots)


def sequence(
  template: Template,
  embed: Callable[[jax.Array], jax.Array],
  visual: jax.Array,
  visual_mask: jax.Array,
  slots: jax.Array,
  clue_ids: jax.Array,
  inject: bool = True,
) -> tuple[jax.Array, jax.Array]:
  """The prompts of a batch.

  Args:
    template: its pieces.
    embed: token ids i32 [...] -> embeddings [..., D].
    visual: H_v [B, N, D].
    visual_mask: bool [B, N].
    slots: H_z [B, C, D].
    clue_ids: i32 [B, C], -1 for none.
    inject: whether there is a part with clues.

  Returns:
    (embeddings [B, P, D] in the type of `embed`, bool [B, P]). The last place is always filled.
  """
  batch, count = clue_ids.shape
  pieces = [_text(embed, template.start, batch), (visual, visual_mask)]
  if not inject:
    pieces.append(_text(embed, template.plain, batch))
  else:
    known = clue_ids >= 0
    pieces.append(_text(embed, template.between, batch))
    if count:
      pieces.append(_clues(template, embed, slots, clue_ids))
    none, filled = _text(embed, template.none, batch)
    pieces += [(none, filled & ~known.any(1, keepdims=True)), _text(embed, template.after, batch)]
  dtype = pieces[0][0].dtype
  return jnp.concatenate([x.astype(dtype) for x, _ in pieces], 1), jnp.concatenate([mask for _, mask in pieces], 1)


def _clues(
  template: Template, embed: Callable[[jax.Array], jax.Array], slots: jax.Array, clue_ids: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """[B, C, 1 + L_n + comma] places in a row: soft token, name, comma."""
  batch, count = clue_ids.shape
  known, index = clue_ids >= 0, jnp.maximum(clue_ids, 0)
  names = embed(jnp.asarray(template.names))[index]
  named = jnp.asarray(template.name_mask)[index]
  comma, there = _text(embed, template.comma, batch * count)
  x = jnp.concatenate(
    [slots[:, :, None].astype(names.dtype), names, comma.reshape(batch, count, -1, names.shape[-1])], 2
  )
  mask = jnp.concatenate([known[..., None], named, there.reshape(batch, count, -1)], 2) & known[..., None]
  return x.reshape(batch, -1, x.shape[-1]), mask.reshape(batch, -1)


def _text(embed: Callable[[jax.Array], jax.Array], ids: Sequence[int], batch: int) -> tuple[jax.Array, jax.Array]:
  x = embed(jnp.asarray(ids, jnp.int32))
  return jnp.broadcast_to(x, (batch, *x.shape)), jnp.ones((batch, len(ids)), bool)
