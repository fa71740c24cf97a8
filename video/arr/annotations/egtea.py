"""EGTEA Gaze+: the official annotation, and RULSTM's CSV files (spec 6.2).

The three splits divide SEGMENTS, not videos: most validation sessions occur in training too. `segments` holds both, for
a history needs both: a deployed recogniser sees the whole video.

RULSTM's form, seen: `training{1,2,3}.csv`, `validation{1,2,3}.csv`, `actions.csv`, no headers, frames at 30 per second
(the videos have 24), rows in no order of time.

The official form is written from descriptions and from how others read it; the files themselves were not at hand:
`raw_annotations/action_labels.csv`, separated by ';', with times in milliseconds, and `{train,test}_split{1,2,3}.txt`
with a clip, its action, verb and noun ids, counted from 1, per line. The clip of a split file is the unique prefix of
the labels file and two frame numbers: SESSION-START-STOP-F000001-F000002. Of several nouns the first counts, as in
RULSTM's.
"""

from __future__ import annotations

import pathlib
import re

from core.errors import UserError
from video.arr.annotations import gathering, tables

FOLDS = 3
FPS = 30.0
"""Of RULSTM's frame numbers."""

LABELS = 'raw_annotations/action_labels.csv'
MARKS = (LABELS, 'training1.csv', 'rulstm_training1.csv')

_CLIP = re.compile(r'(?P<prefix>.+)-F\d+-F\d+')


def read(root: str | pathlib.Path, fold: int = 1, clock: str = 'timestamps') -> tables.Annotations:
  """Reads one of the three splits: its training segments as 'train', its validation or test segments as 'val'.

  Args:
    root: the folder of the files, or its parent.
    fold: 1..3.
    clock: 'timestamps' takes the official files where they are, else RULSTM's; 'frames' takes RULSTM's.

  Raises:
    UserError: no such folder or fold, a missing file, or a file with other columns.
  """
  gathering.check_fold('egtea', fold, FOLDS)
  gather = gathering.Gathering(gathering.locate(root, 'egtea', MARKS))
  official = clock == 'timestamps' and gather.first(LABELS)
  vocabulary = _official(gather, fold) if official else _rulstm(gather, fold)
  return gather.annotations(f'egtea_split{fold}', vocabulary, ('train', 'val'))


def _rulstm(gather: gathering.Gathering, fold: int) -> tables.Vocabulary:
  vocabulary = _actions(gather)
  columns = ['id', 'session', 'start_frame', 'end_frame', 'verb', 'noun', 'action']
  for split, word in (('train', 'training'), ('val', 'validation')):
    name = _file(gather, f'{word}{fold}.csv', f'rulstm_{word}{fold}.csv')
    for where, (uid, session, *numbers) in gather.table(name, columns, header=False):
      try:
        start, stop, verb, noun, action = map(int, numbers)
      except ValueError as error:
        gather.problem('unexpected header' if uid == 'id' else 'bad line', where, str(error))
        continue
      if not 0 <= action < vocabulary.classes:
        gather.problem('unknown class', where, f'action {action}, expected 0..{vocabulary.classes - 1}')
      elif (verb, noun) != (vocabulary.verb_of[action], vocabulary.noun_of[action]):
        expected = f'{vocabulary.verb_of[action]} and {vocabulary.noun_of[action]}'
        gather.problem('unknown class', where, f'verb {verb} and noun {noun}, but action {action} has {expected}')
      else:
        gather.segment(
          where, uid=uid, video=session, participant=session.split('-')[0], start=start / FPS, stop=stop / FPS,
          verb=verb, noun=noun, action=action, split=split,
        )  # fmt: skip
  return vocabulary


def _actions(gather: gathering.Gathering) -> tables.Vocabulary:
  """Classes from lines such as `5, 5_2, Put_eating:utensil`; the last '_' stands between verb and noun."""
  name = _file(gather, 'actions.csv', 'rulstm_actions.csv')
  actions, verb_of, noun_of, verbs, nouns = [], [], [], {}, {}
  for where, (action, pair, text) in gather.table(name, ['id', 'verb_noun', 'name'], header=False):
    try:
      verb, noun = map(int, pair.split('_'))
      if int(action) != len(actions) or min(verb, noun) < 0:
        raise ValueError(f'action {action} is {pair}, expected action {len(actions)} and its VERB_NOUN ids')
    except ValueError as error:
      raise UserError(f'{gather.folder / where}: {error}.') from error
    verbs[verb], _, nouns[noun] = text.rpartition('_')
    actions.append(text.replace('_', ' '))
    verb_of.append(verb)
    noun_of.append(noun)
  return tables.Vocabulary(
    tuple(actions), _in_order(verbs, 'verb'), _in_order(nouns, 'noun'), tuple(verb_of), tuple(noun_of)
  )


def _official(gather: gathering.Gathering, fold: int) -> tables.Vocabulary:
  columns = ['Clip Prefix (Unique)', 'Video Session', 'Starting Time (ms)', 'Ending Time (ms)']
  columns += ['Action Label', 'Verb Label', 'Noun Label(s)']
  labels = {fields[0]: fields[1:] for _, fields in gather.table(LABELS, columns, header=True, delimiter=';')}
  actions, verbs, nouns, pairs = {}, {}, {}, {}
  for split, word in (('train', 'train'), ('val', 'test')):
    name = _file(gather, f'{word}_split{fold}.txt')
    for number, line in enumerate(gather.text(name).splitlines(), 1):
      if not line.strip():
        continue
      where = f'{name}:{number}'
      try:
        clip, action, verb, noun = _clip(line)
        session, start, stop, action_name, verb_name, noun_names = labels[clip]
        start, stop = float(start) / 1000, float(stop) / 1000
      except KeyError:
        gather.problem('missing label', where, f'{clip} is not in {LABELS}')
        continue
      except ValueError as error:
        gather.problem('bad line', where, str(error))
        continue
      if pairs.setdefault(action, (verb, noun)) != (verb, noun):
        had = f'{pairs[action][0] + 1} and {pairs[action][1] + 1} before'
        gather.problem('unknown class', where, f'action {action + 1} has verb {verb + 1} and noun {noun + 1}, {had}')
        continue
      actions[action], verbs[verb], nouns[noun] = action_name, verb_name, noun_names.split(',')[0].strip()
      gather.segment(
        where, uid=clip, video=session, participant=session.split('-')[0], start=start, stop=stop,
        verb=verb, noun=noun, action=action, split=split,
      )  # fmt: skip
  order = sorted(pairs)
  names = [_in_order(found, word) for found, word in ((actions, 'action'), (verbs, 'verb'), (nouns, 'noun'))]
  if order != list(range(len(order))):
    missing = [action + 1 for action in range(len(names[0])) if action not in pairs]
    detail = f'no segment of the actions {missing}: their verb and noun are unknown, 1 and 1 are assumed'
    gather.problem('missing class', str(gather.folder), detail)
  pairs = [pairs.get(action, (0, 0)) for action in range(len(names[0]))]
  return tables.Vocabulary(*names, tuple(verb for verb, _ in pairs), tuple(noun for _, noun in pairs))


def _clip(line: str) -> tuple[str, int, int, int]:
  """(clip prefix, action, verb, first noun) of a line of a split file, the ids counted from 0."""
  clip, *ids = line.split()
  found = _CLIP.fullmatch(clip)
  if not found or len(ids) < 3:
    raise ValueError(f'expected CLIP-F000001-F000002 ACTION VERB NOUN..., found {line[:80]!r}')
  action, verb, noun = (int(number) - 1 for number in ids[:3])
  if min(action, verb, noun) < 0:
    raise ValueError(f'ids are counted from 1, found {line[:80]!r}')
  return found['prefix'], action, verb, noun


def _file(gather: gathering.Gathering, *names: str) -> str:
  name = gather.first(*names)
  if not name:
    raise UserError(f'{gather.folder} has no file {names[0]}.')
  return name


def _in_order(names: dict[int, str], word: str) -> tuple[str, ...]:
  return tuple(names.get(i, f'{word}_{i}') for i in range(max(names, default=-1) + 1))
