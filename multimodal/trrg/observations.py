"""The 14 observations of CheXpert, in CheXbert's order, and what they are called in prompts (spec 3.4, 5.3)."""

from __future__ import annotations

OBSERVATIONS = (
  'Enlarged Cardiomediastinum', 'Cardiomegaly', 'Lung Opacity', 'Lung Lesion', 'Edema', 'Consolidation', 'Pneumonia',
  'Atelectasis', 'Pneumothorax', 'Pleural Effusion', 'Pleural Other', 'Fracture', 'Support Devices', 'No Finding',
)  # fmt: skip

NO_FINDING = OBSERVATIONS.index('No Finding')
SUPPORT_DEVICES = OBSERVATIONS.index('Support Devices')
CLUES = 13
"""Clues are the observations but the last: an absence is not a clue."""

FIVE = tuple(
  OBSERVATIONS.index(name) for name in ('Atelectasis', 'Cardiomegaly', 'Consolidation', 'Edema', 'Pleural Effusion')
)
"""The subset that CheXpert's papers report."""

BLANK, POSITIVE, NEGATIVE, UNCERTAIN = range(4)
"""CheXbert's coding of an observation in a text: not mentioned, present, absent, perhaps."""

NAMES = (
  'enlarged cardiomediastinum', 'cardiomegaly', 'lung opacity', 'lung nodule or mass', 'pulmonary edema',
  'consolidation', 'pneumonia', 'atelectasis', 'pneumothorax', 'pleural effusion', 'pleural thickening', 'fracture',
  'support device',
)  # fmt: skip
"""What the language model is given as the name of each clue [13]."""

PROMPTS = (
  (
    ('the cardiomediastinal silhouette is enlarged', 'the mediastinum is widened'),
    ('the cardiomediastinal contours are normal',),
  ),
  (('the heart is enlarged', 'cardiomegaly is present'), ('heart size is normal', 'no cardiomegaly')),
  (
    ('there is an opacity in the lung', 'airspace disease is present'),
    ('the lungs are clear', 'no focal opacity'),
  ),
  (('a pulmonary nodule or mass is seen',), ('no nodule or mass is seen',)),
  (
    ('pulmonary edema is present', 'there is vascular congestion'),
    ('no pulmonary edema', 'no vascular congestion'),
  ),
  (('there is consolidation',), ('no consolidation',)),
  (('findings are concerning for pneumonia',), ('no evidence of pneumonia',)),
  (('there is atelectasis', 'volume loss at the base'), ('no atelectasis',)),
  (('a pneumothorax is present',), ('no pneumothorax',)),
  (
    ('there is a pleural effusion', 'fluid blunts the costophrenic angle'),
    ('no pleural effusion', 'costophrenic angles are sharp'),
  ),
  (('pleural thickening or scarring is seen',), ('no pleural thickening',)),
  (('a rib fracture is seen',), ('no fracture', 'the bones are intact')),
  (('a tube, line or pacemaker is in place',), ('no tubes or lines',)),
  (('no acute cardiopulmonary abnormality',), ('there is an acute cardiopulmonary abnormality',)),
)
"""Per observation (sentences that assert it, sentences that deny it): the default bank, in the spec's wording."""
