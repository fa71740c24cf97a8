"""From weights to what a run is judged by: one pass over a split, and the four evaluators that read it.

anticipation   the official metrics of the next action (spec 5.2), and the submission file of EPIC-KITCHENS-100
recognition    how well the observed clips are recognised
pretraining    what the decoder saves over copying the last feature (spec 4.2)
statistics     what n-grams over perfect labels reach on the same segments (spec 9b): the bar to be above
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core.data import pipeline
from core.errors import UserError
from core.metrics import classification
from core.train import forward
from core.train.task import Evaluation, Variables
from video.arr import evaluation, losses, ngram, submission
from video.arr.data import EARLIEST, Fold, Reader
from video.arr.model import Anticipator


@dataclasses.dataclass(frozen=True)
class Scores:
  """What the model says of the N targets of a split.

  Attributes:
    probability: f32 [N, C], of the action; "unknown" is removed, and where nothing was observed it is the prior.
    recognised: int32 [N, T], the most probable class of each clip, C for unknown.
    error, copying: f32 [N], squared error of the expected features, and that of copying the last one.
  """

  probability: np.ndarray
  recognised: np.ndarray
  error: np.ndarray
  copying: np.ndarray


class Judge:
  """The evaluators `(variables, split) -> Evaluation`."""

  def __init__(self, model: Anticipator, fold: Fold, reader: Reader, config: Any):
    """Args: reader: as for judgement (its view may give several pictures per frame); config: the experiment's."""
    self.model, self.fold, self.reader, self.config = model, fold, reader, config
    self.scores = forward.Memo(self._score)
    self._pass = jax.jit(self._outputs)

  def anticipation(self, variables: Variables, split: str) -> Evaluation:
    """The official metrics, in percent, as `evaluation.judge` names them, and under the names of published protocols.

    Returns:
      arrays: 'scores' f32 [N, C], 'target' int32 [N], 'uid', 'video' str [N], 'start' f64 [N], 'history' and
      'recognised' int32 [N, T]. A split without labels gives no scalars. EPIC-KITCHENS-100: `files` has the submission.
    """
    rows, scores = self.fold.targets(split), self.scores(variables, split)
    vocabulary = self.fold.vocabulary
    scalars: dict[str, float] = {}
    if (rows['action'] >= 0).all():
      known = evaluation.training_actions(self.fold.annotations.segments)
      scalars, _ = evaluation.judge(scores.probability, rows, vocabulary, known)
      data = self.config.data
      scalars |= evaluation.reported(data.dataset, self.fold.grid.anticipation, data.folds, scalars)
    arrays = {
      'scores': scores.probability, 'recognised': scores.recognised, 'target': rows['action'],
      'history': self.fold.samples(split).grids['label'], **{name: rows[name] for name in ('uid', 'video', 'start')},
    }  # fmt: skip
    files = {}
    if self.config.data.dataset == 'epic_kitchens_100':
      files[f'submission_{split}.json'] = submission.submission(rows['uid'].tolist(), scores.probability, vocabulary)
    return Evaluation(scalars, arrays, {'vocabulary': vocabulary.plain(), 'prior': self.fold.prior().tolist()}, files)

  def recognition(self, variables: Variables, split: str) -> Evaluation:
    """Percent of the observed clips, those before the video's beginning left out, that are named rightly.

    Returns:
      scalars 'top_1' of annotated clips, 'last/top_1' of annotated last clips, 'unknown/recall' of clips in which
      nothing is annotated; those without a clip are left out.
    """
    recognised, grids = self.scores(variables, split).recognised, self.fold.samples(split).grids
    right, seen = recognised == grids['label'], ~grids['pad']
    known = grids['label'] != self.fold.vocabulary.classes
    groups = {'top_1': seen & known, 'unknown/recall': seen & ~known}
    scalars = {name: 100 * float(right[group].mean()) for name, group in groups.items() if group.any()}
    last = (seen & known)[:, -1]
    if last.any():
      scalars['last/top_1'] = 100 * float(right[:, -1][last].mean())
    return Evaluation(scalars)

  def pretraining(self, variables: Variables, split: str) -> Evaluation:
    """'skill' over copying, and the two mean squared errors that it is made of."""
    scores = self.scores(variables, split)
    error, copying = float(scores.error.mean()), float(scores.copying.mean())
    return Evaluation({'skill': float(losses.skill_of(error, copying)), 'error': error, 'copying': copying})

  def statistics(self, variables: Variables, split: str) -> Evaluation:
    """What n-grams over the true labels reach on the segments of 'val', and how far above them the model is.

    Returns:
      scalars '<n-gram>/<measure>' in percent, and 'above_<n-gram>/<measure>' in points: the model's minus the n-gram's.

    Raises:
      UserError: another split; an n-gram is judged where the official metrics are.
    """
    if split != 'val':
      raise UserError(f"The evaluator 'statistics' judges the split 'val', not '{split}'.")
    found = ngram.table(self.fold.annotations, self.fold.grid.anticipation, self.config.eval.ngram_prior)
    best = classification.ranked(self.scores(variables, split).probability, 5)
    own = classification.summary(best, self.fold.targets(split)['action'])
    scalars = {f'{name}/{measure}': value for name, each in found.items() for measure, value in each.items()}
    for name, each in found.items():
      scalars |= {f'above_{name}/{measure}': 100 * own[measure] - value for measure, value in each.items()}
    return Evaluation(scalars)

  def _score(self, variables: Variables, split: str) -> Scores:
    samples = self.fold.samples(split)
    batches = pipeline.eval_batches(
      samples, self.config.eval.batch_size, self.reader, workers=self.config.data.workers
    )  # fmt: skip
    found = forward.over(self._pass, variables, batches, ('inputs',))
    unseen = samples.targets['start'] - self.fold.grid.anticipation < EARLIEST
    probability = np.where(unseen[:, None], self.fold.prior().astype(np.float32), found.pop('probability'))
    return Scores(probability, **found)

  def _outputs(self, variables: Variables, inputs: jax.Array) -> Mapping[str, jax.Array]:
    """One batch; with several views per frame, inputs [B, V, T, ...], logits are averaged over them (AVT)."""
    views = inputs.shape[1] if inputs.ndim == 7 else 1
    outputs = self.model.apply(variables, inputs.reshape(-1, *inputs.shape[2:]) if views > 1 else inputs)
    r, q = (jnp.mean(outputs[key].reshape(-1, views, *outputs[key].shape[1:]), axis=1) for key in ('r', 'q'))
    following, z = outputs['z'][:, 1:], outputs['z'][:, :-1]
    square = lambda guess: jnp.mean(jnp.square(guess - following).reshape(len(r), -1), axis=-1)  # noqa: E731
    return {
      'probability': jax.nn.softmax(q[:, -1, :-1]),
      'recognised': jnp.argmax(r, axis=-1).astype(jnp.int32),
      'error': square(outputs['p'][:, :-1]),
      'copying': square(z),
    }
