"""TRRG: reports from films and disease clues, in the order of the method (spec 3 and 4).

  p, q = norm(W_v v_cls), norm(W_t t)                  stage 1: film against sentence       contrast.py
  m_k  = e^tau (p . g_k+ - p . g_k-)                   perception: margins, then clues      perception.py
  V    = E_img'(I)                                     stage 2: a copy of the encoder       encoders.py
  V', Z = CCIM(V, {c_k})                               cross-modal clue interaction         interaction.py
  H_v, H_z = LN(W_p V'), LN(W_z Z)                     clue injection                       injection.py
  LLM([BOS] Human: <Img> H_v </Img> <Clue> H_z,1 name_1, ... </Clue> instruction Assistant: report </s>)
  L = L_LM + lambda L_dac                              disease-aware consistency            consistency.py

Films are grey, 0..255. A batch of stage 1: 'image' uint8 [B, H, W], 'text_ids' i32 and 'text_mask' bool [B, L],
'text_key' i32 [B] (equal where two sentences are), 'sentence_label' and 'study_label' int8 [B, 14]. Of stage 2: 'image'
uint8 [B, V, H, W], 'view_mask' bool [B, V], 'margin' f32 [B, 14], 'clue_ids' i32 [B, C] (0..12, -1 for none),
'report_ids' i32 [B, T] (</s> included), 'report_mask' bool [B, T], 'labels' int8 [B, 14].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from core.errors import UserError, nearest
from core.nn import adapters, llama
from core.train import mesh
from core.weights import files
from core.weights import llama as llama_weights
from multimodal.trrg import consistency, contrast, encoders, perception
from multimodal.trrg.encoders import dropout
from multimodal.trrg.injection import Injection, Template, sequence
from multimodal.trrg.interaction import Interaction, initial
from multimodal.trrg.observations import CLUES, OBSERVATIONS

PERCEPTION, VISION, LANGUAGE = 'perception', 'vision', 'language'
INTERACTION, INJECTION, DISEASE = 'interaction', 'injection', 'disease'
"""The parts, as first parts of the '/'-joined parameter paths."""

TUNING = ('lora', 'full', 'frozen')
"""Of the language model in stage 2; 'frozen' is R2GenGPT's."""

Variables = Mapping[str, Any]
Texts = tuple[np.ndarray, np.ndarray]
"""ids i32 [N, L] and mask bool [N, L] of sentences, as the text encoder's tokenizer gives them."""


class Prompt(NamedTuple):
  """What the language model is given before the report.

  Attributes:
    embeddings: [B, P, D]; the last place is always filled.
    mask: bool [B, P].
    visual: V' [B, N, d_v].
    visual_mask: bool [B, N].
    slots: Z [B, C, d].
    evidence: f32 [B, C, N], what each clue looks at, where it was asked for and there is an interaction.
  """

  embeddings: jax.Array
  mask: jax.Array
  visual: jax.Array
  visual_mask: jax.Array
  slots: jax.Array
  evidence: jax.Array | None


class Outputs(NamedTuple):
  """Of a pass over known reports.

  Attributes:
    logits: f32 [B, T, V]; row t is of report token t.
    hidden: [B, T, D], the states they are read from; the first is h, at the end of the prompt.
    lv, ll: f32 [B, 14], what film and language model say of the observations.
  """

  logits: jax.Array
  hidden: jax.Array
  lv: jax.Array
  ll: jax.Array


class Reporter:
  """The networks of both stages. Holds no weights: variables in, arrays out; every method can be traced.

  Attributes:
    words: L_w, words of a clue that the interaction reads.
    limit: C, most clues of a study.
    vision, text: see `encoders`.
    language: the `core.nn.llama.Llama`; its variables are {'params': variables['params']['language']}.
  """

  def __init__(
    self, config: Any, *, image_size: int, text_vocabulary: int, language_vocabulary: int, template: Template
  ):
    """Reads the section `config.model`.

    Args:
      config: vision {encoder, variant, tuning}, text {variant, pooling}, contrast_width (d_c), views, interaction
        {enabled, width, heads, layers, mlp_ratio, dropout, words}, clues {limit, inject}, language {variant, tuning,
        lora {rank, alpha, dropout, targets}, dtype, param_dtype, remat, scan}, disease {loss, weight, consistency},
        dtype (of all but the language model). A variant is a name or a section of sizes. `load` reads the weights.
      image_size: side of the films.
      text_vocabulary, language_vocabulary: of the two tokenizers.
      template: of the prompt, by the language model's tokenizer.

    Raises:
      UserError: a choice that does not exist or that does not go together.
    """
    self.config, self.template = config, template
    self.words, self.limit = int(config.interaction.words), int(config.clues.limit)
    self.inject, self.views = bool(config.clues.inject), config.views
    _check(config)
    dtype, meeting = jnp.dtype(config.dtype), config.interaction
    vision = {'image_size': image_size, 'dtype': dtype, 'blind_width': int(meeting.width)}
    self.eye = encoders.Vision(config.vision, **vision)
    self.vision = encoders.Vision(config.vision, adapted=config.vision.tuning == 'lora', **vision)
    self.text = encoders.Text(config.text, vocabulary=text_vocabulary, dtype=dtype)
    self.language = _language(config.language, language_vocabulary)
    layers = int(meeting.layers) if meeting.enabled else 0
    self.interaction = Interaction(
      meeting.width, meeting.heads, layers, meeting.mlp_ratio, float(meeting.dropout), dtype
    )
    self.injection = Injection(self.language.width)
    self.disease = consistency.Disease(meeting.width, meeting.heads, self.text.width, dtype)

  def init(self, rng: jax.Array) -> dict[str, Any]:
    """Fresh variables; pure and traceable.

    Returns:
      {'params': {'perception': {'image', 'text', 'project_image', 'project_text', 'temperature'}, 'vision',
      'interaction', 'injection', 'disease', 'language'}, 'clues': of `bank`, with theta and pos_weight f32 [14]}.
    """
    keys = jax.random.split(rng, 9)
    width, narrow, wide = self.text.width, int(self.config.contrast_width), self.language.width
    visual, seen = jnp.zeros((1, 1, self.vision.width)), jnp.ones((1, 1), bool)
    slot, known = jnp.zeros((1, 1, width)), jnp.ones((1, 1), bool)
    words = jnp.zeros((1, 1, self.words, width)), jnp.ones((1, 1, self.words), bool)
    meeting = self.interaction.init(keys[5], visual, seen, slot, *words, known, jnp.zeros((1, 1)))
    params = {
      PERCEPTION: {
        'image': self.eye.init(keys[0]),
        'text': self.text.init(keys[1]),
        'project_image': {'kernel': initial(keys[2], (self.eye.width, narrow))},
        'project_text': {'kernel': initial(keys[3], (width, narrow))},
        'temperature': jnp.float32(contrast.INITIAL),
      },
      VISION: self.vision.init(keys[4]),
      INTERACTION: meeting['params'],
      INJECTION: self.injection.init(keys[6], visual, jnp.zeros((1, 1, self.interaction.width)))['params'],
      DISEASE: self.disease.init(keys[7], visual, seen, jnp.zeros((1, wide)))['params'],
      LANGUAGE: self.language.init(keys[8], jnp.zeros((1, 1, wide)))['params'],
    }
    count = len(OBSERVATIONS)
    clues = {
      'sentence': jnp.zeros((CLUES, width)),
      'words': jnp.zeros((CLUES, self.words, width)),
      'word_mask': jnp.zeros((CLUES, self.words), bool),
      'prototype': jnp.zeros((count, width)),
      'positive': jnp.zeros((count, narrow)),
      'negative': jnp.zeros((count, narrow)),
      'theta': jnp.zeros((count,)),
      'pos_weight': jnp.ones((count,)),
    }
    return {'params': params, 'clues': clues}

  def load(self, variables: Variables) -> dict[str, Any]:
    """Merges in the public weights that vision.weights, text.weights and language.weights name, printing the accounts.

    '' leaves a network as it is; low-rank updates always stay.
    """
    flat = flax.traverse_util.flatten_dict(variables['params'], sep='/')
    sources: list[tuple[str, str, Callable[..., Any]]] = [
      (f'{PERCEPTION}/image', self.config.vision.weights, self.eye.load),
      (VISION, self.config.vision.weights, self.vision.load),
      (f'{PERCEPTION}/text', self.config.text.weights, self.text.load),
      (LANGUAGE, self.config.language.weights, lambda own, path: llama_weights.load(own, files.read(path))),
    ]
    for part, path, read in sources:
      if not path:
        continue
      start = f'{part}/'
      own = {name.removeprefix(start): leaf for name, leaf in flat.items() if name.startswith(start)}
      loaded, account = read(own, path)
      if jax.process_index() == 0:
        print(f'{part}: {account}', flush=True)
      flat |= {start + name: mesh.placed(array, own[name]) for name, array in loaded.items()}
    return {**variables, 'params': flax.traverse_util.unflatten_dict(flat, sep='/')}

  # Stage 1 and perception.

  def image_embedding(
    self,
    variables: Variables,
    image: jax.Array,
    view_mask: jax.Array,
    *,
    train: bool = False,
    rng: jax.Array | None = None,
  ) -> jax.Array:
    """p f32 [B, d_c] of films uint8 or f32 [B, V, H, W]: mean over the views that are there, unit length (spec 3.4)."""
    params = variables['params'][PERCEPTION]
    film = self.eye(params['image'], _flat(image, view_mask), train=train, rng=rng)
    each = contrast.embed(film.summary, params['project_image']['kernel']).reshape(*view_mask.shape, -1)
    return contrast.unit(encoders.masked_mean(each, view_mask[..., None], axis=1))

  def text_embedding(
    self, variables: Variables, ids: jax.Array, mask: jax.Array, *, train: bool = False, rng: jax.Array | None = None
  ) -> jax.Array:
    """q f32 [B, d_c], unit length, of sentences i32 and bool [B, L]."""
    params = variables['params'][PERCEPTION]
    sentence = self.text(params['text'], ids, mask, train=train, rng=rng)
    return contrast.embed(sentence.summary, params['project_text']['kernel'])

  def word_embeddings(self, variables: Variables, ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(f32 [B, d_t] of sentences, f32 [B, L, d_t] of their words)."""
    return tuple(self.text(variables['params'][PERCEPTION]['text'], ids, mask))

  def contrast_loss(
    self,
    variables: Variables,
    batch: Mapping[str, jax.Array],
    targets: str = 'label_match',
    *,
    train: bool = True,
    rng: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L_con of a batch of stage 1 (`contrast.loss`), `targets` one of `contrast.TARGETS`."""
    keys = _split(rng, 2)
    image = batch['image'][:, None]
    p = self.image_embedding(variables, image, jnp.ones(image.shape[:2], bool), train=train, rng=keys[0])
    q = self.text_embedding(variables, batch['text_ids'], batch['text_mask'], train=train, rng=keys[1])
    wanted = contrast.targets(targets, batch['text_key'], batch['sentence_label'], batch['study_label'])
    return contrast.loss(p, q, variables['params'][PERCEPTION]['temperature'], *wanted)

  def margins(self, variables: Variables, image: jax.Array, view_mask: jax.Array) -> jax.Array:
    """m f32 [B, 14] of films [B, V, H, W], by the prototypes in variables['clues']."""
    if self.eye.blind:
      raise UserError("model.vision.encoder 'none' sees no film: its clues are given, not perceived.")
    clues, tau = variables['clues'], variables['params'][PERCEPTION]['temperature']
    return perception.margins(
      self.image_embedding(variables, image, view_mask), clues['positive'], clues['negative'], tau
    )

  def bank(
    self, variables: Variables, positive: Sequence[Texts], negative: Sequence[Texts], words: Texts
  ) -> dict[str, jax.Array]:
    """The clue bank of the text encoder as it is (spec 3.4): a constant of stage 2.

    Args:
      variables: weights.
      positive, negative: per observation [14] the sentences that assert and that deny it.
      words: one sentence per clue [13], of L_w words at most: what the interaction reads of it.

    Returns:
      'sentence' f32 [13, d_t], 'words' f32 [13, L_w, d_t] and 'word_mask' bool [13, L_w] of `words`; 'prototype' f32
      [14, d_t], mean over the positive sentences; 'positive', 'negative' f32 [14, d_c], the prototypes g.
    """
    count = len(OBSERVATIONS)
    if not len(positive) == len(negative) == count or words[0].shape != (CLUES, self.words):
      raise UserError(
        f'the clue bank has {len(positive)} positive and {len(negative)} negative observations and words of'
        f' {words[0].shape}, expected {count}, {count} and {(CLUES, self.words)}.'
      )
    groups = [*positive, *negative]
    owner = jnp.asarray(np.repeat(np.arange(2 * count), [len(ids) for ids, _ in groups]))
    params = variables['params'][PERCEPTION]
    sentence = self.text(params['text'], *_stacked(groups))
    q = contrast.embed(sentence.summary, params['project_text']['kernel'])
    g = perception.prototypes(q, owner, 2 * count)
    summary, states = self.text(params['text'], *(jnp.asarray(each) for each in words))
    return {
      'sentence': summary,
      'words': states,
      'word_mask': jnp.asarray(words[1]),
      'prototype': perception.means(sentence.summary, owner, 2 * count)[:count],
      'positive': g[:count],
      'negative': g[count:],
    }

  def begin(self, variables: Variables) -> dict[str, Any]:
    """What stage 2 starts from: a copy of the image encoder, and disease queries that are the bank's prototypes."""
    params = dict(variables['params'])
    own = flax.traverse_util.flatten_dict(params[VISION], sep='/')
    seen = flax.traverse_util.flatten_dict(params[PERCEPTION]['image'], sep='/')
    own |= {path: jnp.copy(leaf) for path, leaf in seen.items()}
    params[VISION] = flax.traverse_util.unflatten_dict(own, sep='/')
    params[DISEASE] = {**params[DISEASE], 'query': jnp.copy(variables['clues']['prototype'])}
    return {**variables, 'params': params}

  # Stage 2.

  def prompt(
    self,
    variables: Variables,
    batch: Mapping[str, jax.Array],
    *,
    train: bool = False,
    rng: jax.Array | None = None,
    evidence: bool = False,
  ) -> Prompt:
    """All before the report, from 'image', 'view_mask', 'margin' and 'clue_ids'; `rng` of dropout in training."""
    params, keys = variables['params'], _split(rng, 2)
    image, view_mask = batch['image'], batch['view_mask']
    film = self.vision(params[VISION], _flat(image, view_mask), train=train, rng=keys[0])
    tokens = film.tokens.reshape(*view_mask.shape, *film.tokens.shape[1:])
    visual, visual_mask = encoders.fuse(tokens, view_mask, self.views)
    visual, slots, seen = self.interaction.apply(
      {'params': params[INTERACTION]}, visual, visual_mask, *_clue_inputs(variables['clues'], batch), train=train,
      evidence=evidence, rngs=dropout(keys[1]),
    )  # fmt: skip
    h_visual, h_slots = self.injection.apply({'params': params[INJECTION]}, visual, slots)
    embeddings, mask = sequence(
      self.template, self._embed(variables), h_visual, visual_mask, h_slots, batch['clue_ids'], inject=self.inject
    )
    return Prompt(embeddings, mask, visual, visual_mask, slots, seen)

  def forward(
    self, variables: Variables, batch: Mapping[str, jax.Array], *, train: bool = False, rng: jax.Array | None = None
  ) -> Outputs:
    """The language model over prompts and their reports, and both readings of the diseases."""
    keys = _split(rng, 2)
    prompt = self.prompt(variables, batch, train=train, rng=keys[0])
    hidden = self._states(variables, prompt.embeddings, prompt.mask, batch, train, keys[1])
    disease = {'params': variables['params'][DISEASE]}
    lv, ll = self.disease.apply(disease, prompt.visual, prompt.visual_mask, hidden[:, 0])
    return Outputs(self._logits(variables, hidden), hidden, lv, ll)

  def loss(
    self, variables: Variables, batch: Mapping[str, jax.Array], *, train: bool = False, rng: jax.Array | None = None
  ) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    """L = L_LM + lambda L_dac.

    Returns:
      (f32 scalar, its parts, number of report tokens: the denominator of L_LM. L_dac is a mean over studies: with
      micro-batches of unequal numbers of tokens its average is weighted by them).
    """
    out, disease = self.forward(variables, batch, train=train, rng=rng), self.config.disease
    writing, tokens = language_loss(out.logits, batch['report_ids'], batch['report_mask'])
    agreement, parts = consistency.loss(
      out.lv, out.ll, batch['labels'], variables['clues']['pos_weight'], kind=disease.loss, beta=disease.consistency
    )
    return writing + disease.weight * agreement, {'language': writing, 'consistency': agreement, **parts}, tokens

  def language_loss(
    self, variables: Variables, batch: Mapping[str, jax.Array], *, train: bool = True, rng: jax.Array | None = None
  ) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    """L_LM of reports alone, behind [BOS] (or the prompt's first token): the language of a model that starts fresh."""
    start = jnp.full((len(batch['report_ids']), 1), self.template.start[0], jnp.int32)
    embeddings = self._embed(variables)(start)
    hidden = self._states(variables, embeddings, jnp.ones(start.shape, bool), batch, train, rng)
    writing, tokens = language_loss(self._logits(variables, hidden), batch['report_ids'], batch['report_mask'])
    return writing, {'language': writing}, tokens

  def _states(
    self,
    variables: Variables,
    prompt: jax.Array,
    mask: jax.Array,
    batch: Mapping[str, jax.Array],
    train: bool,
    rng: jax.Array | None,
  ) -> jax.Array:
    """[B, T, D]: the states that the report's tokens are read from, the end of the prompt first."""
    ids, places = batch['report_ids'], prompt.shape[1]
    if places + ids.shape[1] > self.language.max_positions:
      raise UserError(
        f'a prompt of {places} places and a report of {ids.shape[1]} do not fit into the context of the language model,'
        f' {self.language.max_positions}: fewer views, clues (model.clues.limit) or tokens (language.length).'
      )
    x = jnp.concatenate([prompt, self._embed(variables)(ids[:, :-1]).astype(prompt.dtype)], axis=1)
    mask = jnp.concatenate([mask, batch['report_mask'][:, :-1]], axis=1)
    language = {'params': variables['params'][LANGUAGE]}
    hidden = self.language.apply(language, x, mask=mask, train=train, rngs=dropout(rng))
    return hidden[:, places - 1 :]

  def _embed(self, variables: Variables) -> Callable[[jax.Array], jax.Array]:
    language = {'params': variables['params'][LANGUAGE]}
    return lambda ids: self.language.apply(language, ids, method='embed')

  def _logits(self, variables: Variables, hidden: jax.Array) -> jax.Array:
    return self.language.apply({'params': variables['params'][LANGUAGE]}, hidden, method='logits')


def language_loss(logits: jax.Array, ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(L_LM, number of tokens): mean cross-entropy over the tokens of reports where the mask says so, </s> included.

  Args:
    logits: f32 [B, T, V], row t of token t.
    ids: i32 [B, T].
    mask: bool [B, T].
  """
  each = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), ids)
  tokens = jnp.sum(mask, dtype=jnp.float32)
  return jnp.sum(jnp.where(mask, each, 0)) / jnp.maximum(tokens, 1), tokens


def _clue_inputs(clues: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
  """What the interaction is told of each clue: sentence, words, their mask, clue mask, confidence."""
  ids = jnp.asarray(batch['clue_ids'])
  index = jnp.maximum(ids, 0)
  sentence, words, word_mask, theta = (
    jnp.asarray(clues[name])[index] for name in ('sentence', 'words', 'word_mask', 'theta')
  )
  margin = jnp.take_along_axis(batch['margin'], index, axis=1)
  return sentence, words, word_mask, ids >= 0, jax.nn.sigmoid(margin - theta)


def _flat(image: jax.Array, view_mask: jax.Array) -> jax.Array:
  """Films [B V, H, W] of studies [B, V, H, W]; refuses studies without a film where the mask is at hand."""
  if image.ndim != 4 or image.shape[:2] != view_mask.shape:
    raise UserError(
      f'films have the shape {image.shape} and the views {view_mask.shape}, expected [studies, views, height, width]'
      ' in grey and [studies, views].'
    )
  if isinstance(view_mask, np.ndarray):
    encoders.check_views(view_mask)
  return image.reshape(-1, *image.shape[2:])


def _stacked(groups: Sequence[Texts]) -> tuple[jax.Array, jax.Array]:
  """Groups of sentences one below the other, padded to the longest."""
  length = max(ids.shape[1] for ids, _ in groups)
  fit = lambda x: np.pad(np.asarray(x), ((0, 0), (0, length - x.shape[1])))  # noqa: E731
  return tuple(jnp.asarray(np.concatenate([fit(group[i]) for group in groups])) for i in (0, 1))


def _language(config: Any, vocabulary: int) -> llama.Llama:
  options = {
    'vocabulary': vocabulary, 'dtype': jnp.dtype(config.dtype), 'param_dtype': jnp.dtype(config.param_dtype),
    'remat': bool(config.remat), 'scan': bool(config.scan),
  }  # fmt: skip
  if config.tuning == 'lora':
    lora = config.lora
    options['dense'] = adapters.lora(int(lora.rank), float(lora.alpha), tuple(lora.targets), float(lora.dropout))
  return encoders.sized(llama, llama.Llama, config.variant, **options)


def _split(rng: jax.Array | None, count: int) -> Sequence[jax.Array | None]:
  return [None] * count if rng is None else jax.random.split(rng, count)


def _check(config: Any) -> None:
  """Finds words that mean nothing."""
  consistency.check(config.disease.loss)
  for name, value, known in (
    ('views', config.views, encoders.VIEWS),
    ('vision.tuning', config.vision.tuning, encoders.TUNING),
    ('language.tuning', config.language.tuning, TUNING),
  ):
    if value not in known:
      raise UserError(f"model.{name} is '{value}', expected one of {known}.{nearest(value, known)}")
