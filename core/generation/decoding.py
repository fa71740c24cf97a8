"""What may be asked of a generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from core.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Decoding:
  """How tokens are chosen; names and meanings are those of `transformers.GenerationConfig`.

  Attributes:
    beams: hypotheses that are kept per sample; 1 follows one.
    sample: whether to draw the next token from its distribution; with one beam only.
    temperature: the logits are divided by it before drawing, > 0.
    top_k: draw among the k most probable tokens; 0: among all.
    top_p: draw among the fewest tokens that hold this much probability, in (0, 1].
    repetition_penalty: positive scores of tokens seen before are divided by it, negative ones multiplied; 1: none.
    no_repeat_ngram: no n tokens in a row occur twice; 0: they may.
    length_penalty: a finished beam is ranked by sum(log p) / length^length_penalty; > 0 favours long ones.
    min_new_tokens: the end is forbidden before so many tokens.
    max_new_tokens: the end comes after so many tokens, N.
    early_stopping: when a beam search is over. True: there are as many finished beams as beams. False: there are, and
      no open beam beats the worst of them at its present length. 'never': nor at the length that suits it best.
    stop: texts that end a sample: the token that completes one is its last, and its text is cut before it.
  """

  beams: int = 1
  sample: bool = False
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  repetition_penalty: float = 1.0
  no_repeat_ngram: int = 0
  length_penalty: float = 1.0
  min_new_tokens: int = 0
  max_new_tokens: int = 128
  early_stopping: bool | str = False
  stop: tuple[str, ...] = ()

  @classmethod
  def from_config(cls, section: Mapping[str, Any]) -> Decoding:
    """From a section of a config; keys that it lacks have their default."""
    known = [field.name for field in dataclasses.fields(cls)]
    for key in section:
      if key not in known:
        raise UserError(f"decoding has no '{key}', expected keys among {known}.{nearest(key, known)}")
    values = {key: section[key] for key in section}
    if 'stop' in values:
      values['stop'] = (values['stop'],) if isinstance(values['stop'], str) else tuple(values['stop'])
    return cls(**values)

  def __post_init__(self):
    ranges = {
      'beams': (self.beams >= 1, 'at least 1'),
      'temperature': (self.temperature > 0, 'above 0; greedy is sample=False'),
      'top_k': (self.top_k >= 0, 'at least 0'),
      'top_p': (0 < self.top_p <= 1, 'in (0, 1]'),
      'repetition_penalty': (self.repetition_penalty > 0, 'above 0; 1 is none'),
      'no_repeat_ngram': (self.no_repeat_ngram >= 0, 'at least 0'),
      'max_new_tokens': (self.max_new_tokens >= 1, 'at least 1'),
      'min_new_tokens': (0 <= self.min_new_tokens <= self.max_new_tokens, f'from 0 to {self.max_new_tokens}'),
      'early_stopping': (
        isinstance(self.early_stopping, bool) or self.early_stopping == 'never',
        "True, False or 'never'",
      ),
      'stop': (isinstance(self.stop, tuple) and all(self.stop), 'a tuple of texts that are not empty'),
      'sample': (not (self.sample and self.beams > 1), 'False where there are several beams'),
    }
    for name, (right, expected) in ranges.items():
      if not right:
        raise UserError(f'decoding: {name} is {getattr(self, name)!r}, expected {expected}.')
