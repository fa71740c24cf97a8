"""Tokenizers: the public ones by file, folder or Hub name, and small ones trained on the spot.

One class in front of the `tokenizers` library. What public repositories ship in four ways (tokenizer.json, a
SentencePiece tokenizer.model, a vocab.txt of BERT, each with or without a config that names the special tokens) comes
out as one thing that pickles, that fits into a checkpoint's metadata as text, and that never adds, cuts or pads by
itself: special tokens go where the caller puts them.

    tokenizer = Tokenizer.load('meta-llama/Llama-2-7b-chat-hf')
    ids, mask = tokenizer.batch(reports, 100, end=(tokenizer.eos,))
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import string
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from core.errors import UserError, nearest

ROLES = ('bos', 'eos', 'pad', 'unk', 'cls', 'sep', 'mask')
"""What a special token can be for."""

FILES = ('tokenizer.json', 'tokenizer.model', 'vocab.txt')
"""What a folder may hold, the first found is read."""
CONFIGS = ('tokenizer_config.json', 'special_tokens_map.json')

USUAL = {
  'bos': ('<s>', '<|begin_of_text|>', '<|endoftext|>'),
  'eos': ('</s>', '<|end_of_text|>', '<|eot_id|>', '<|endoftext|>'),
  'pad': ('<pad>', '[PAD]', '<|pad|>'),
  'unk': ('<unk>', '[UNK]'),
  'cls': ('[CLS]',),
  'sep': ('[SEP]',),
  'mask': ('[MASK]', '<mask>'),
}
"""Role -> names, for sources that do not say which token has it."""

KINDS = ('wordpiece', 'bpe')


class Tokenizer:
  """Text <-> ids.

  Attributes:
    vocabulary: how many rows an embedding table needs: the greatest id + 1.
    bos, eos, pad, unk, cls, sep, mask: the id that has this role, or None.
  """

  def __init__(self, library: tokenizers.Tokenizer, special: Mapping[str, str], source: str = ''):
    """Takes the library's tokenizer and role -> token; what a file says of padding and truncation is dropped."""
    library.no_padding()
    library.no_truncation()
    self._library = library
    self.source = source
    self.special = {role: special[role] for role in ROLES if role in special}
    self.vocabulary = max(library.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    for role in ROLES:
      setattr(self, role, self._id(role))

  bos: int | None
  eos: int | None
  pad: int | None
  unk: int | None
  cls: int | None
  sep: int | None
  mask: int | None

  def encode(self, text: str) -> list[int]:
    """The ids of a text, without the special tokens that the file's own template would add."""
    return self._library.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Iterable[int]) -> str:
    """The text of ids; special tokens are left out, and ids that a padded table has beyond the vocabulary."""
    return self._library.decode([int(i) for i in ids if 0 <= i < self.vocabulary], skip_special_tokens=True)

  def batch(
    self,
    texts: Sequence[str],
    length: int,
    *,
    start: Sequence[int] = (),
    end: Sequence[int] = (),
    side: str = 'right',
    truncate: bool = True,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Texts as one array.

    Args:
      texts: B strings.
      length: L, of every row.
      start: ids before each text (cls, bos).
      end: ids after each text; a text that is cut keeps them.
      side: where the padding goes, 'right' or 'left'.
      truncate: whether a text that is too long loses its end; else it is refused.

    Returns:
      (ids int32 [B, L], filled with `pad`, or 0 where there is none; mask bool [B, L], true on what is not padding).
    """
    if side not in ('right', 'left'):
      raise UserError(f"side of padding '{side}': expected 'right' or 'left'.")
    room = length - len(start) - len(end)
    if room < 0:
      raise UserError(f'a length of {length} has no room for the {len(start) + len(end)} tokens around each text.')
    ids = np.full((len(texts), length), self.pad or 0, np.int32)
    mask = np.zeros((len(texts), length), bool)
    for row, text in enumerate(texts):
      inside = self.encode(text)
      if len(inside) > room and not truncate:
        raise UserError(f'text {row} has {len(inside)} tokens, and {room} fit: {text[:60]!r}.')
      whole = (*start, *inside[:room], *end)
      place = slice(0, len(whole)) if side == 'right' else slice(length - len(whole), length)
      ids[row, place] = whole
      mask[row, place] = True
    return ids, mask

  def check(self, rows: int, name: str = 'the network') -> None:
    """Refuses a network whose embedding table is not of this tokenizer.

    Too few rows cannot hold the ids. Published tables are padded by some rows; one that is greater by more than 1,024
    and more than an eighth belongs to another vocabulary.
    """
    if self.vocabulary > rows:
      raise UserError(
        f'tokenizer {self.source} has ids up to {self.vocabulary - 1}, {name} embeds {rows}: they do not belong'
        ' together. Take the tokenizer of the same folder as the weights.'
      )
    if rows - self.vocabulary > max(1024, self.vocabulary // 8):
      raise UserError(
        f'tokenizer {self.source} has {self.vocabulary} tokens, {name} embeds {rows}: most rows would never be used, so'
        ' this is another tokenizer. Take the one of the same folder as the weights.'
      )

  def fingerprint(self) -> str:
    """16 hex digits: equal iff two tokenizers give the same ids and have the same special tokens."""
    text = json.dumps({**json.loads(self._library.to_str()), 'special': self.special}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def to_json(self) -> str:
    """The tokenizer as text, for a checkpoint's metadata."""
    return json.dumps({'special': self.special, 'tokenizer': json.loads(self._library.to_str())})

  @classmethod
  def from_json(cls, text: str, source: str = 'from text') -> Tokenizer:
    """Back from `to_json`; also takes the text of a tokenizer.json."""
    try:
      content = json.loads(text)
      inner = content.get('tokenizer', content)
      library = tokenizers.Tokenizer.from_str(json.dumps(inner))
    except Exception as error:  # the library raises plain Exception
      raise UserError(f'tokenizer {source} is not the JSON of a tokenizer: {error}') from error
    return cls(library, content.get('special') or _usual(library), source)

  def save(self, folder: str | os.PathLike[str]) -> None:
    """Writes tokenizer.json and tokenizer_config.json as `transformers` reads them."""
    folder = pathlib.Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    self._library.save(str(folder / 'tokenizer.json'))
    config = {'tokenizer_class': 'PreTrainedTokenizerFast'}
    config |= {f'{role}_token': token for role, token in self.special.items()}
    (folder / 'tokenizer_config.json').write_text(json.dumps(config, indent=2), encoding='utf-8')

  @classmethod
  def load(cls, source: str | os.PathLike[str]) -> Tokenizer:
    """Opens a tokenizer.

    Args:
      source: a folder with tokenizer.json, tokenizer.model (SentencePiece) or vocab.txt (BERT); such a file; or
        'owner/name[@revision]' on the Hub.
    """
    path = pathlib.Path(source).expanduser()
    if not path.exists():
      path = _download(str(source))
    if path.is_dir():
      found = [path / name for name in FILES if (path / name).is_file()]
      if not found:
        raise UserError(f'{path} holds no tokenizer: expected one of {", ".join(FILES)}.')
      path = found[0]
    config = _config(path.parent)
    if path.suffix == '.json':
      tokenizer = cls.from_json(path.read_text(encoding='utf-8'), str(source))
      return cls(tokenizer._library, {**tokenizer.special, **_named(config, tokenizer._library)}, str(source))
    if path.suffix == '.model':
      library, special = _sentencepiece(path)
      return cls(library, {**special, **_named(config, library)}, str(source))
    if path.suffix == '.txt':
      library = _bert(path, bool(config.get('do_lower_case', True)))
      return cls(library, {**_usual(library), **_named(config, library)}, str(source))
    raise UserError(f'tokenizer {path}: expected a folder, or one of {", ".join(FILES)}.')

  @classmethod
  def train(cls, kind: str, texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Learns a tokenizer from texts.

    Args:
      kind: 'wordpiece' (BERT's: lower case, [PAD] [UNK] [CLS] [SEP] [MASK] first) or 'bpe' (on bytes, so that
        decode(encode(x)) == x for every text; <pad> <s> </s> first).
      vocabulary: how many tokens at most.
    """
    if kind not in KINDS:
      raise UserError(f"kind of tokenizer '{kind}': expected one of {', '.join(KINDS)}.{nearest(kind, KINDS)}")
    library, special = (_wordpiece if kind == 'wordpiece' else _byte_bpe)(list(texts), vocabulary)
    return cls(library, special, f'trained {kind}')

  def _id(self, role: str) -> int | None:
    token = self.special.get(role)
    return None if token is None else self._library.token_to_id(token)

  def __getstate__(self) -> tuple[str, str]:
    return self.to_json(), self.source

  def __setstate__(self, state: tuple[str, str]) -> None:
    other = Tokenizer.from_json(*state)
    self.__dict__.update(other.__dict__)

  def __repr__(self) -> str:
    return f'Tokenizer({self.source!r}, vocabulary={self.vocabulary}, special={self.special})'


def _wordpiece(texts: list[str], vocabulary: int) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
  """The letters inside words are given to the trainer in order: it numbers them as its hash map yields them, another
  way each run, and its ties with them. They must not stay special tokens, hence the second library."""
  special = {'pad': '[PAD]', 'unk': '[UNK]', 'cls': '[CLS]', 'sep': '[SEP]', 'mask': '[MASK]'}
  learned = _bert_library({'[UNK]': 0}, lowercase=True)
  letters = sorted(
    {letter for text in texts for letter in learned.normalizer.normalize_str(text)} - set(string.whitespace)
  )
  first = [*special.values(), *letters, *(f'##{letter}' for letter in letters)]
  if vocabulary < len(first):
    raise UserError(f'a wordpiece of {vocabulary} tokens: these texts need {len(first)} for their single letters.')
  trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=first, show_progress=False)
  learned.train_from_iterator(iter(texts), trainer)
  library = _bert_library(learned.get_vocab(), lowercase=True)
  library.decoder = decoders.WordPiece(cleanup=False)
  library.add_special_tokens(list(special.values()))
  return library, special


def _byte_bpe(texts: list[str], vocabulary: int) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
  """A space before every text makes its first word the same token as that word later on; decoding takes it off."""
  special = {'pad': '<pad>', 'bos': '<s>', 'eos': '</s>'}
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  if vocabulary < len(alphabet) + len(special):
    raise UserError(f'a bpe of {vocabulary} tokens: expected at least {len(alphabet) + len(special)}, one per byte.')
  library = tokenizers.Tokenizer(models.BPE())
  library.normalizer = normalizers.Prepend(' ')
  library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  library.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse(), decoders.Strip(' ', 1, 0)])
  trainer = trainers.BpeTrainer(
    vocab_size=vocabulary, special_tokens=list(special.values()), initial_alphabet=alphabet, show_progress=False
  )
  library.train_from_iterator(iter(texts), trainer)
  return library, special


def _bert(path: pathlib.Path, lowercase: bool) -> tokenizers.Tokenizer:
  """A vocab.txt: one token a line, its number is its id."""
  tokens = [line.rstrip('\n') for line in path.read_text(encoding='utf-8').splitlines()]
  if '[UNK]' not in tokens:
    raise UserError(f'{path} is not a vocabulary of BERT: it has no [UNK].')
  library = _bert_library({token: i for i, token in enumerate(tokens)}, lowercase)
  library.add_special_tokens([t for role in ROLES for t in USUAL[role] if t.startswith('[') and t in tokens])
  return library


def _bert_library(vocabulary: dict[str, int], lowercase: bool) -> tokenizers.Tokenizer:
  library = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token='[UNK]'))
  library.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
  library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  library.decoder = decoders.WordPiece()
  return library


def _sentencepiece(path: pathlib.Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
  """A SentencePiece file (BPE or unigram) as the same tokenizer in `tokenizers`, and the roles it names itself."""
  from sentencepiece import sentencepiece_model_pb2 as proto

  model = proto.ModelProto()
  try:
    model.ParseFromString(path.read_bytes())
  except Exception as error:  # protobuf's DecodeError, which moves between its versions
    raise UserError(f'{path} is not a SentencePiece model: {error}.') from error
  kinds = model.trainer_spec.ModelType
  kind = model.trainer_spec.model_type
  if kind not in (kinds.BPE, kinds.UNIGRAM) or not model.pieces:
    raise UserError(f'{path}: expected a SentencePiece model of type BPE or unigram, found {kinds.Name(kind)}.')
  pieces = [(piece.piece, piece.score) for piece in model.pieces]
  types = proto.ModelProto.SentencePiece.Type
  by_type = {t: [p.piece for p in model.pieces if p.type == t] for t in types.values()}
  unknown = (by_type[types.UNKNOWN] or [None])[0]
  fallback = bool(by_type[types.BYTE])
  if kind == kinds.BPE:
    vocabulary = {piece: i for i, (piece, _) in enumerate(pieces)}
    merges = _merges(vocabulary, {p.piece: p.score for p in model.pieces if p.type == types.NORMAL})
    inner = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback)
  else:
    unk_id = next((i for i, (piece, _) in enumerate(pieces) if piece == unknown), None)
    inner = models.Unigram(pieces, unk_id=unk_id, byte_fallback=fallback)
  library = tokenizers.Tokenizer(inner)
  library.normalizer = _sentencepiece_normalizer(model.normalizer_spec)
  tail = [decoders.Strip(' ', 1, 0)] if model.normalizer_spec.add_dummy_prefix else []
  library.decoder = decoders.Sequence(
    [decoders.Replace('\u2581', ' '), decoders.ByteFallback(), decoders.Fuse(), *tail]
  )
  added = [tokenizers.AddedToken(p, normalized=False) for p in by_type[types.USER_DEFINED]]
  library.add_tokens(added)
  library.add_special_tokens([*by_type[types.UNKNOWN], *by_type[types.CONTROL]])
  spec = model.trainer_spec
  ids = {'bos': spec.bos_id, 'eos': spec.eos_id, 'pad': spec.pad_id, 'unk': spec.unk_id}
  return library, {role: pieces[i][0] for role, i in ids.items() if 0 <= i < len(pieces)}


def _merges(vocabulary: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
  """The merges that a list of scored pieces stands for: SentencePiece joins the pair whose whole scores best."""
  merges = []
  for piece, score in scores.items():
    cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
    pairs = [(left, right) for left, right in cuts if left in scores and right in scores]
    merges.extend((-score, vocabulary[left], vocabulary[right], left, right) for left, right in pairs)
  return [(left, right) for *_, left, right in sorted(merges)]


def _sentencepiece_normalizer(spec) -> normalizers.Normalizer:
  steps = []
  if spec.precompiled_charsmap:
    steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
  if spec.remove_extra_whitespaces:
    steps += [normalizers.Strip(), normalizers.Replace(tokenizers.Regex(' {2,}'), ' ')]
  if spec.add_dummy_prefix:
    steps.append(normalizers.Prepend('\u2581'))
  return normalizers.Sequence([*steps, normalizers.Replace(' ', '\u2581')])


def _config(folder: pathlib.Path) -> dict:
  config = {}
  for name in reversed(CONFIGS):
    path = folder / name
    try:
      config |= json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
    except ValueError as error:
      raise UserError(f'{path} is not JSON: {error}.') from error
  return config


def _named(config: Mapping, library: tokenizers.Tokenizer) -> dict[str, str]:
  """Role -> token as a config states it; a token that the vocabulary lacks has no id and is left out."""
  named = {role: config.get(f'{role}_token') for role in ROLES}
  named = {role: token.get('content') if isinstance(token, Mapping) else token for role, token in named.items()}
  return {role: token for role, token in named.items() if token and library.token_to_id(token) is not None}


def _usual(library: tokenizers.Tokenizer) -> dict[str, str]:
  found = {role: [t for t in names if library.token_to_id(t) is not None] for role, names in USUAL.items()}
  return {role: names[0] for role, names in found.items() if names}


def _download(repository: str) -> pathlib.Path:
  """Fetches the tokenizer's files of 'owner/name[@revision]' from the Hub into its cache."""
  if not re.fullmatch(r'[\w.-]+/[\w.-]+(@[\w./-]+)?', repository) or pathlib.Path(repository).suffix in (
    '.json',
    '.model',
  ):
    raise UserError(
      f'tokenizer {repository}: no such file or folder. Expected {", ".join(FILES)}, a folder, or owner/name.'
    )
  import huggingface_hub

  name, _, revision = repository.partition('@')
  try:
    folder = huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=[*FILES, *CONFIGS])
  except Exception as error:
    reason = (str(error).strip().splitlines() or [''])[0][:200]
    raise UserError(
      f'tokenizer {repository}: there is no such file or folder here, and the Hugging Face Hub did not give it'
      f' ({type(error).__name__}: {reason}). Check the name and the network, or download it and give the path.'
    ) from error
  return pathlib.Path(folder)
