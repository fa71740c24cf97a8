"""The rule labeller: mentions, negation, doubt, parts of the body; and the cache in front of any labeller."""

import csv

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from core.errors import UserError
from multimodal.trrg import cleaning, labeller, observations
from multimodal.trrg.observations import BLANK, NEGATIVE, NO_FINDING, OBSERVATIONS, POSITIVE, UNCERTAIN

CM, HEART, OPACITY, LESION, EDEMA, CONS, PNA, ATEL, PTX, EFF, PLEURA, FRACTURE, DEVICE = range(13)
P, N, U = POSITIVE, NEGATIVE, UNCERTAIN

SENTENCES = {
  # a denial runs through a list
  'No pneumothorax, pleural effusion, or focal consolidation.': {PTX: N, EFF: N, CONS: N},
  'no focal consolidation pneumothorax or pleural effusion': {PTX: N, EFF: N, CONS: N},
  'Negative for pneumothorax, effusion or focal airspace disease.': {PTX: N, EFF: N, OPACITY: N},
  'The lungs are clear of focal airspace disease, pneumothorax, or pleural effusion.': {OPACITY: N, PTX: N, EFF: N},
  'The lungs are free of focal infiltrates.': {OPACITY: N},
  'No pneumonia, effusions, edema, pneumothorax, adenopathy, nodules or masses.':
    {PNA: N, EFF: N, EDEMA: N, PTX: N, LESION: N},
  'No acute, displaced rib fractures are demonstrated.': {FRACTURE: N},
  'There are no XXXX of a pleural effusion.': {EFF: N},
  'There is no focal air space opacity to suggest a pneumonia.': {OPACITY: N, PNA: N},
  'The lungs do not demonstrate focal infiltrates.': {OPACITY: N},
  # and ends where something is asserted again
  'No pneumothorax, small left effusion.': {PTX: N, EFF: P},
  'No pneumothorax with a small left effusion.': {PTX: N, EFF: P},
  'No pneumothorax, but there is bibasilar atelectasis.': {PTX: N, ATEL: P},
  'No acute disease, mild cardiomegaly.': {HEART: P},
  'There is edema but no effusion.': {EDEMA: P, EFF: N},
  'Aside from mild atelectasis, the lungs are clear.': {ATEL: P, OPACITY: N},
  'No significant interval change in the left effusion.': {EFF: P},
  'Low lung volumes with bibasilar atelectasis and no pneumothorax.': {ATEL: P, PTX: N},
  # denials that close a statement
  'A pneumothorax is not seen.': {PTX: N},
  'Bibasilar opacities are present, pneumothorax is not identified.': {OPACITY: P, PTX: N},
  'The left effusion has resolved.': {EFF: N},
  'Pneumothorax: none.': {PTX: N},
  'Right PICC has been removed.': {DEVICE: N},
  'Interval removal of the chest tube.': {DEVICE: N},
  # doubts
  'Opacity in the right base may represent atelectasis or pneumonia.': {OPACITY: P, ATEL: U, PNA: U},
  'Pneumonia cannot be excluded.': {PNA: U},
  'Cannot exclude a small effusion.': {EFF: U},
  'Possible small effusions.': {EFF: U},
  'Findings are concerning for pneumonia.': {PNA: U},
  'Bibasilar opacities, likely atelectasis.': {OPACITY: P, ATEL: U},
  'Subsegmental atelectasis or infiltrate.': {ATEL: U, OPACITY: U},
  'Edema is less likely.': {EDEMA: U},
  'Findings are consistent with pneumonia.': {PNA: P},
  'Question edema or atypical infection?': {EDEMA: U, PNA: U},
  # parts of the body
  'The heart is normal in size. The mediastinum is unremarkable.': {HEART: N, CM: N},
  'Heart size and pulmonary vascularity appear within normal limits.': {HEART: N, EDEMA: N},
  'Normal heart size and mediastinal contours.': {HEART: N, CM: N},
  'Cardiac and mediastinal contours are within normal limits.': {HEART: N, CM: N},
  'The cardiomediastinal silhouette is mildly enlarged.': {CM: P},
  'The cardiac silhouette is enlarged and the lungs are clear.': {HEART: P, OPACITY: N},
  'The heart is stable and the lungs are clear.': {OPACITY: N},
  'Heart size within normal limits, stable mediastinal contours.': {HEART: N},
  'The heart is not significantly enlarged.': {HEART: N},
  'Heart size is at the upper limits of normal.': {HEART: N},
  'Borderline heart size.': {HEART: U},
  'The heart may be enlarged.': {HEART: U},
  'There is no mediastinal widening.': {CM: N},
  'The mediastinum is stable.': {},
  'The mediastinum is stable and the heart is normal in size.': {HEART: N},
  'Clear lungs. Costophrenic angles are sharp.': {OPACITY: N, EFF: N},
  'Blunting of the left costophrenic angle.': {EFF: U},
  'Visualized bony structures reveal no acute abnormalities.': {FRACTURE: N},
  'No acute bony abnormality.': {FRACTURE: N},
  'The bones are intact.': {FRACTURE: N},
  'Degenerative changes of the spine.': {},
  # words that only look like those of an observation
  'The trachea is midline.': {},
  'Calcified nodules are seen.': {},
  'Massive hiatal hernia.': {},
  'Small pericardial effusion.': {},
  'Scattered calcified granulomas.': {},
  'Old granulomatous infection.': {},
  'Pleural scarring is seen.': {PLEURA: P},
  'Diffuse pulmonary fibrosis.': {OPACITY: P},
  # devices
  'Left-sided pacemaker with leads in the right atrium.': {DEVICE: P},
  'Right chest XXXX with tip in the low SVC.': {DEVICE: P},
}  # fmt: skip


@pytest.mark.parametrize('sentence', SENTENCES)
def test_labels_of_sentences(sentence):
  row = labeller.rules([sentence])[0]
  found = {k: int(row[k]) for k in range(13) if row[k]}
  assert found == SENTENCES[sentence]


@pytest.mark.parametrize(
  ('text', 'normal'),
  [
    ('No acute cardiopulmonary abnormality.', True),
    ('Normal chest.', True),
    ('Heart size is normal. There is a pacemaker.', True),
    ('Heart size is normal. There is a small effusion.', False),
    ('No acute disease. Possible pneumonia.', False),
    ('The trachea is midline.', False),
    ('There is a pacemaker.', False),
    ('', False),
  ],
)
def test_no_finding_is_said_when_all_that_is_said_is_normal(text, normal):
  assert labeller.rules([text])[0, NO_FINDING] == (POSITIVE if normal else BLANK)


def test_a_report_takes_the_strongest_label_of_its_sentences():
  weak, middle, strong = 'No effusion.', 'Possible effusion.', 'There is an effusion.'
  texts = [f'{weak} {middle}', f'{middle} {weak}', f'{weak} {strong} {middle}', weak]
  assert labeller.rules(texts)[:, EFF].tolist() == [U, U, P, N]


def test_the_prompt_bank_says_what_it_is_for():
  """But for two prompts in the spec's words that leave open what they name."""
  doubted = {'findings are concerning for pneumonia', 'pleural thickening or scarring is seen'}
  for k, (present, absent) in enumerate(observations.PROMPTS):
    for prompt in present:
      assert labeller.rules([prompt])[0, k] == (U if prompt in doubted else P), prompt
    for prompt in absent:
      assert labeller.rules([prompt])[0, k] == (BLANK if k == NO_FINDING else N), prompt


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(
  words=st.lists(
    st.sampled_from(
      (
        'no',
        'effusion',
        ',',
        'heart',
        'is',
        'normal',
        'or',
        'may',
        'excluded',
        'cannot',
        'be',
        'large',
        ';',
        'not',
        'seen',
      )
    ),
    max_size=12,
  )
)
def test_any_text_has_labels_and_stops_at_sentences(words):
  text = ' '.join(words)
  row = labeller.rules([text])[0]
  assert row.dtype == np.int8 and ((row >= 0) & (row <= 3)).all()
  with_more = labeller.rules([text + ' . A rib fracture is seen .'])[0]
  others = [k for k in range(13) if k != FRACTURE]
  assert (with_more[others] == row[others]).all() and with_more[FRACTURE] == P


def test_no_texts_have_no_labels():
  assert labeller.rules([]).shape == (0, 14)


def test_cached_asks_once_per_text_and_remembers_across_runs(tmp_path):
  asked = []

  def inner(texts):
    asked.extend(texts)
    return labeller.rules(texts)

  path = tmp_path / 'cache' / 'labels.npz'
  texts = ['No edema.', 'There is edema.', 'No edema.', '']
  first = labeller.cached(inner, path)
  assert (first(texts) == labeller.rules(texts)).all() and asked == ['No edema.', 'There is edema.', '']
  again = labeller.cached(inner, path)
  assert (again([*reversed(texts), 'Fracture.']) == labeller.rules([*reversed(texts), 'Fracture.'])).all()
  assert asked[3:] == ['Fracture.'] and again([]).shape == (0, 14)
  assert [each.name for each in path.parent.iterdir()] == ['labels.npz']
  assert b'edema' not in path.read_bytes()


def test_a_broken_cache_and_an_absent_checkpoint_are_named(tmp_path):
  (tmp_path / 'labels.npz').write_bytes(b'PK\x03\x04 cut off')
  with pytest.raises(UserError, match='labels.npz is not a cache of labels'):
    labeller.cached(labeller.rules, tmp_path / 'labels.npz')
  assert labeller.open('rules') is labeller.rules
  with pytest.raises(UserError, match="expected 'rules' or the path"):
    labeller.open(str(tmp_path / 'chexbert.pth'))


INDEXED = {
  HEART: ('Cardiomegaly',), OPACITY: ('Opacity', 'Airspace Disease', 'Infiltrate', 'Cicatrix'),
  EDEMA: ('Pulmonary Edema', 'Pulmonary Congestion', 'Heart Failure'), CONS: ('Consolidation',), PNA: ('Pneumonia',),
  ATEL: ('Pulmonary Atelectasis',), PTX: ('Pneumothorax', 'Hydropneumothorax', 'Hemopneumothorax'),
  EFF: ('Pleural Effusion',), FRACTURE: ('Fractures, Bone',),
  DEVICE: ('Catheters, Indwelling', 'Implanted Medical Device', 'Tube, Inserted', 'Medical Device'),
}  # fmt: skip
"""What the indexers of Open-i call these observations."""


def test_real_reports_are_labelled_as_their_indexers_did(shared_data):
  """Floors under what was measured: recall counts doubts in, precision does not (an indexer takes either)."""
  with (shared_data / 'iu_xray' / 'indiana_reports.csv').open(newline='', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  labels = labeller.rules([f'{row["findings"]}\n\n{row["impression"]}' for row in rows])
  problems = [{problem.strip() for problem in row['Problems'].split(';')} for row in rows]
  for k, names in INDEXED.items():
    indexed = np.array([not each.isdisjoint(names) for each in problems])
    said, asserted = np.isin(labels[:, k], (P, U)), labels[:, k] == P
    assert (said & indexed).sum() >= 0.88 * indexed.sum(), OBSERVATIONS[k]
    assert (asserted & indexed).sum() >= (0.7 if k == PNA else 0.85) * asserted.sum(), OBSERVATIONS[k]
  normal = np.array([each == {'normal'} for each in problems])
  assert (labels[normal, NO_FINDING] == P).mean() > 0.95


def test_cleaning_takes_the_commas_and_hardly_a_label(shared_data):
  """Generated reports have no commas, references are labelled as written: the labels must not depend on it."""
  with (shared_data / 'iu_xray' / 'indiana_reports.csv').open(newline='', encoding='utf-8') as file:
    reports = [row['findings'] for row in csv.DictReader(file) if row['findings']]
  raw, cleaned = labeller.rules(reports), labeller.rules([cleaning.clean(report) for report in reports])
  assert (raw != cleaned).mean() < 0.002
