"""Language metrics of generated text, by the field's own scorers (MS-COCO caption evaluation, `pycocoevalcap`).

  BLEU-n    geometric mean of the clipped n-gram precisions of orders 1..n over the whole corpus, times exp(1 - r/c)
            when the corpus of hypotheses (c tokens) is shorter than that of references (r)
  ROUGE-L   F-measure (beta 1.2) of the longest common subsequence, mean over texts
  CIDEr     cosine of tf-idf weighted 1..4-grams, document frequencies from the references that are scored against, with
            a Gaussian penalty on length (sigma 6), times 10: comparable on the same references only
  METEOR    version 1.5, `-l en -norm`, a Java program

Strings are split at white space and nothing else (no Penn Treebank tokenizer): how reports are scored (TRRG spec 5.2),
and what leaves the choice of tokens to the caller. All but CIDEr (0..10) lie in 0..1.
"""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
import subprocess
import warnings
from collections.abc import Sequence

from core.errors import UserError

METEOR = ('auto', 'on', 'off')


def language(hypotheses: Sequence[str], references: Sequence[str], *, meteor: str = 'auto') -> dict[str, float]:
  """Scores texts against one reference each.

  Args:
    hypotheses: N strings, tokens separated by spaces; may be empty.
    references: N strings, none empty.
    meteor: 'auto', where Java is there and works (else it is said once and left out); 'on', or an error; 'off'. It
      reads its tables anew for each call, some 10 seconds: leave it off where texts are scored many times.

  Returns:
    'bleu_1' to 'bleu_4', 'rouge_l', 'cider', and 'meteor'.

  Raises:
    UserError: the numbers of texts differ or are zero, a reference is empty, or METEOR is 'on' and does not run.
  """
  if meteor not in METEOR:
    raise UserError(f"meteor '{meteor}': expected one of {', '.join(METEOR)}.")
  if len(hypotheses) != len(references) or not len(references):
    raise UserError(f'{len(hypotheses)} texts and {len(references)} references: expected as many, and at least one.')
  empty = next((i for i, text in enumerate(references) if not text.strip()), None)
  if empty is not None:
    raise UserError(f'reference {empty} is empty: nothing can be scored against it. Leave that case out.')
  # METEOR reads one text per line, with ||| between its fields.
  found, wanted = (
    {i: [text.replace('\n', ' ').replace('\r', ' ').replace('|||', ' ')] for i, text in enumerate(texts)}
    for texts in (hypotheses, references)
  )
  from pycocoevalcap.bleu.bleu import Bleu
  from pycocoevalcap.cider.cider import Cider
  from pycocoevalcap.rouge.rouge import Rouge

  with contextlib.redirect_stdout(io.StringIO()):  # the scorers print their counts
    bleu, _ = Bleu(4).compute_score(wanted, found, verbose=0)
    rouge, _ = Rouge().compute_score(wanted, found)
    cider, _ = Cider().compute_score(wanted, found)
  scores = {f'bleu_{n}': float(value) for n, value in enumerate(bleu, 1)}
  scores |= {'rouge_l': float(rouge), 'cider': float(cider)}
  if meteor != 'off' and (value := _meteor(wanted, found, meteor == 'on')) is not None:
    scores['meteor'] = value
  return scores


def distinct(texts: Sequence[str]) -> int:
  """How many different texts there are: 1 when a model always says the same."""
  return len({' '.join(text.split()) for text in texts})


def _meteor(wanted: dict, found: dict, needed: bool) -> float | None:
  """METEOR of the corpus, or None when it cannot be had and is not needed."""
  reason = _java()
  if not reason:
    from pycocoevalcap.meteor.meteor import Meteor

    try:
      value, _ = Meteor().compute_score(wanted, found)
      return float(value)
    except (OSError, ValueError) as error:  # its Java process died, or printed something else than numbers
      reason = f'METEOR stopped ({type(error).__name__}: {error})'
  if needed:
    raise UserError(f"{reason}. Install a Java runtime with 2 GB of memory to spare, or set meteor to 'off'.")
  _say(f'{reason}: METEOR is left out of the language metrics.')
  return None


@functools.cache
def _java() -> str:
  """Why Java cannot be used, or ''."""
  java = shutil.which('java')
  if java is None:
    return 'METEOR is a Java program, and there is no java on this machine'
  try:
    subprocess.run([java, '-version'], check=True, capture_output=True, timeout=60)
  except (OSError, subprocess.SubprocessError) as error:
    return f'METEOR is a Java program, and {java} does not run ({error})'
  return ''


@functools.cache
def _say(message: str) -> None:
  """Warns of something the first time only."""
  warnings.warn(message, stacklevel=4)
