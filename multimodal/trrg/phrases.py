"""The words of the rule labeller: what names each observation, what denies it, what leaves it open (spec 5.3).

The seeds follow the phrases of the public CheXpert labeller as the spec lists them; what was added or taken away was
read off the 3,080 reports of the Open-i collection (`XXXX` stands there for what the de-identification took out).
Everything is matched as whole words in a lower-case sentence whose hyphens are spaces.

Two departures from the seeds, by how Open-i is indexed: fibrosis is of the lung unless it is called pleural (of 13
reports that say just fibrosis none is indexed as pleural), and a heart at the "upper limits of normal" is normal (7 of
97 are indexed as cardiomegaly), while a "borderline" one stays open (39 of 47).
"""

from __future__ import annotations

import re

from multimodal.trrg.observations import NEGATIVE, POSITIVE, UNCERTAIN


def words(*phrases: str) -> re.Pattern[str]:
  """Any of some phrases, each of whole words, the longest that is listed first; each is a regular expression."""
  return re.compile(rf'\b(?:{"|".join(phrases)})\b')


FINDINGS = {
  'Enlarged Cardiomediastinum': (
    r'(?:cardio)?mediastinal (?:widening|enlargement)',
    r'(?:widening|enlargement) of the (?:superior |upper )?(?:cardio)?mediastin\w+',
  ),
  'Cardiomegaly': (
    'cardiomegaly', '(?:cardiac|heart) enlargement', 'enlargement of the (?:heart|cardiac silhouette)',
    'increase in (?:heart|cardiac) size',
  ),
  'Lung Opacity': (
    r'opaci\w+', r'infiltrat\w*', 'airspace (?:disease|process|density|densities)', r'scar\w*', 'fibrosis',
    'interstitial (?:lung |pulmonary )?(?:prominence|disease|thickening)', r'reticul\w+',
    r'(?:increased|prominent|coarse\w*|accentuated|abnormal|irregular|diffuse) (?:\w+ )?interstitial'
    ' (?:lung |pulmonary )?(?:markings?|patterns?|changes?)',
  ),
  'Lung Lesion': (
    'mass', 'masses', r'nodul\w+', 'tumors?', r'neoplas\w+', '(?:cavitary|lung|pulmonary) lesions?', r'metasta\w+',
    'carcinoma', r'malignan\w+', 'lung cancer', r'mass ?like (?:opaci|densi|lesion|consolid)\w*',
  ),
  'Edema': (
    'edema', 'heart failure', 'chf', '(?:central |pulmonary |vascular |venous )*congestion',
    'congestive (?:changes|failure)', 'cephalization', 'vascular (?:engorgement|prominence|redistribution)',
    '(?:fluid|volume) overload',
  ),
  'Consolidation': (r'consolidat\w+',),
  'Pneumonia': (
    '(?:broncho)?pneumonias?', 'pneumonitis', 'infections?',
    r'infectious (?:process\w*|etiolog\w+|disease|infiltrat\w+)',
  ),
  'Atelectasis': (
    r'atelecta\w+', '(?:lobar|lung|lobe|segmental|partial|alveolar) collapse', 'volume loss',
    'loss of (?:lung )?volume',
  ),
  'Pneumothorax': (r'(?:hydro)?pneumothora\w+', 'ptx'),
  'Pleural Effusion': (
    'effusions?', r'pleural (?:\w+ )?fluid', 'fluid (?=blunts|in the (?:pleura|fissure))', r'hydropneumothora\w+',
    r'hemothora\w+',
  ),
  'Pleural Other': (
    r'pleural (?:\w+ )?(?:thickening|scar\w*|fibrosis|plaques?|calcifications?)', 'fibrothorax',
    r'pleuro ?parenchymal (?:\w+ )?(?:thickening|scar\w*)', 'thickening of the pleura', 'apical cap(?:ping)?',
  ),
  'Fracture': (r'fractur\w+',),
  'Support Devices': (
    r'pacer\w*', 'pacemakers?', 'pacing (?:devices?|wires?|leads?)', 'lines?', 'picc', 'tubes?', 'catheters?',
    'drains?', 'leads?', 'valves?', r'valvular prosthes\w+', 'ports?', 'port a cath', 'mediport', 'portacath',
    'hardware', 'a?icd', 'defibrillators?', 'stimulators?', 'electrodes?', 'generators?', 'devices?',
    'cannulas?', 'balloon pump', '(?:sternotomy|sternal) wires?',
    r'tips? (?=(?:\w+ ){0,6}(?:svc|cavoatrial|atri\w+|carina|ventric\w+))',
  ),
}  # fmt: skip
"""Name -> what asserts the observation by its mere mention, unless it is denied or left open."""

EXCEPTIONS = {
  'Lung Opacity': (r'pleural (?:\w+ )?(?:scar\w*|fibrosis)', 'cystic fibrosis', 'opacified', r'contrast opaci\w+'),
  'Lung Lesion': (
    r'calcifi\w+ (?:\w+ ){0,2}(?:nodul|granulom|mass)\w*', 'nodular calcifications?', 'mass effect',
    r'(?:opaci|densi)\w+ like',
  ),
  'Edema': ('(?:soft tissue|subcutaneous) edema', 'nasal congestion', r'vascular engorgement \w+ within'),
  'Pneumonia': (
    r'(?:prior|previous|history of) (?:\w+ )?(?:pneumonia|infection)', r'granulomatous (?:\w+ )?infections?',
  ),
  'Pleural Effusion': (r'pericardial (?:\w+ )?effusions?', r'effusions? in the pericardi\w+'),
  'Support Devices': (
    r'(?:kerley|b|fracture|fissure|fissural|pleural|skin|septal|paraspinal|junction|psoas|lung|suture|surgical'
    r'|midclavicular|midaxillary|paratracheal) lines?', 'line of', 'in line', 'leads? to',
    r'(?:mitral|aortic) valves? calcif\w+', r'calcif\w+ (?:of the )?(?:mitral|aortic) valves?',
  ),
}  # fmt: skip
"""Name -> what looks like its words and is not."""

_NORMAL = (
  'normal', 'unremarkable', 'within (?:grossly )?(?:normal )?limits(?: of normal)?',
  'upper (?:limits? )?(?:of )?normal', '(?:no|without) (?:\\w+ ){0,3}(?:abnormalit\\w+|acute findings?|acute disease)',
)  # fmt: skip
_LARGE = ('enlarged', 'enlargement', 'widened', 'widening', 'dilated', 'big', 'increased')
_OPEN = ('borderline(?: enlarged)?', 'prominent', 'prominence', 'normal to mildly enlarged')
_CLEAR = ('clear(?! of)',)

ANATOMY = (
  (
    'Cardiomegaly',
    (
      'hearts?(?: size| shadow| silhouette| contours?)?(?! failure| disease| valve| rate| sounds)',
      'cardiac (?:silhouettes?|size|contours?|shadow|structures)', 'cardiopericardial silhouette',
      r'cardiac(?=(?: size)? and (?:the )?(?:medi|hil|vasc|pulm)\w+|, )',
    ),
    ((_OPEN, UNCERTAIN), ((*_LARGE, 'large'), POSITIVE), (_NORMAL, NEGATIVE)),
  ),
  (
    'Enlarged Cardiomediastinum',
    (
      '(?:cardio)?mediastin(?:um|al)(?! (?:wid|enlarg|lymph|aden|calc|clip|drain|wire|hema|shift|mass|fat|node|granul))'
      '(?: silhouettes?| contours?| structures?| shadows?| size| width| borders?)?',
    ),
    ((_OPEN, UNCERTAIN), (_LARGE, POSITIVE), (_NORMAL, NEGATIVE)),
  ),
  (
    'Lung Opacity',
    (
      'lungs?(?: fields?| parenchyma| zones?| bases?| apices)?(?! (?:volumes?|cancer|disease|nod|mass))',
      'chest (?=is clear)',
    ),
    (((*_CLEAR, *_NORMAL), NEGATIVE),),
  ),
  (
    'Lung Opacity',
    ('interstitial markings?', 'interstitium'),
    (((r'increased|prominent|coarse\w*|accentuated|irregular',), POSITIVE), (_NORMAL, NEGATIVE)),
  ),
  (
    'Edema',
    (
      '(?:pulmonary |central )*(?:vasculature|vascularity|vascular (?:markings?|pattern)|vessels)',
      r'vascular engorgement(?= \w+ within)',
    ),
    (((r'congest\w+|engorged|increased|indistinct|cephalized|prominent',), POSITIVE), (_NORMAL, NEGATIVE)),
  ),
  ('Edema', ('pulmonary xxxx',), ((('engorged|congested',), POSITIVE),)),
  (
    'Pleural Effusion',
    (r'(?:costo ?phrenic|cp) (?:angles?|sulc\w+|recess\w*|xxxx)', r'posterior (?:\w+ )?sulc\w+'),
    (((r'blunt\w*|obscur\w+',), UNCERTAIN), ((r'sharp\w*', 'preserved', *_CLEAR, *_NORMAL), NEGATIVE)),
  ),
  (
    'Pleural Effusion',
    (r'pleural (?:spaces?|surfaces?|recess\w*)', 'pleura'),
    (((*_CLEAR, *_NORMAL), NEGATIVE),),
  ),
  (
    'Fracture',
    ('bones', '(?:bony|osseous|skeletal) (?:structures?|thorax|skeleton)', 'skeleton', 'ribs'),
    ((('intact', *_NORMAL), NEGATIVE),),
  ),
)  # fmt: skip
"""(observation, parts of the body, ((what is said of them, label), ...)): a bare mention of a part says nothing."""

ONLY_DENIED = {
  'Fracture': (r'(?:bony|osseous|skeletal|bone) (?:\w+ )?(?:abnormalit\w+|findings?|process)',),
}
"""Name -> what says something of the observation only where it is denied."""

SAYS_NORMAL = re.compile(
  r'\b(?:no|without|negative for)\b[^;]*?\b(?:acute|active|significant|radiographic)\b[^;]*?'
  r'\b(?:abnormalit\w+|diseases?|process\w*|findings?|pathology|change|disorder)\b'
  r'|\bno (?:evidence of )?(?:(?:cardio)?pulmonary |cardiac |(?:intra)?thoracic )*(?:abnormalit\w+|disease|findings)\b'
  r'|\b(?:normal|negative|unremarkable) (?:\w+ ){0,3}(?:chest|exam\w*|study|radiographs?|films?|x ?ray)\b'
  r'|\b(?:chest|exam\w*|study|radiographs?|x ?ray)(?: \w+){0,2} (?:is |are |appears? )?'
  r'(?:normal|negative|unremarkable|within normal limits)\b'
)
"""A sentence that says that all is well without naming what."""

DENIES = words(
  'no', 'without', 'absence of', 'absent', 'negative for', 'free (?:of|from)', 'clear(?:ed|ing)? of', 'rules? out',
  'ruling out', 'nor', 'neither', 'devoid of', 'lack of', 'rather than', '(?:interval )?(?:resolution|removal) of',
  '^(?:interval |previously |now )?resolved',
  r'(?:does|do|did) not (?:\w+ )?(?:demonstrate|show|reveal|have|suggest|identify|see|contain)',
  'failed to (?:demonstrate|show|reveal)', 'exclud(?:es|ing)',
  r'not (?=(?:\w+ )?(?:enlarged|increased|widened|dilated|congested|engorged|prominent|blunted)\b)',
)  # fmt: skip
"""Denies what follows."""

_SEEN = 'seen|identified|present|visualized|evident|appreciated|demonstrated|noted|detected|observed|apparent|visible'
DENIED = words(
  rf'(?:not|never|no longer) (?:\w+ )?(?:{_SEEN}|suspected|found)', 'absent', 'ruled out', 'excluded', 'resolved',
  r'(?:has|have|had) (?:since |now |been |\w+ly )*(?:resolved|cleared|disappeared|removed)',
  'not an? (?:issue|concern)', '(?:none|no|negative)(?= ?$)',
)  # fmt: skip
"""Denies what stands before it."""

_EXCLUDE = r'(?:can ?not|not|difficult to|hard to|unable to) (?:\w+ )?(?:exclude|rule out)'
DOUBTS = words(
  r'possib\w+', r'probab\w+', 'likely', 'unlikely', 'may', 'might', 'could', r'suggest\w*', 'suspicious(?: for)?',
  'suspicion (?:of|for)', 'suspect(?:ed)?', '(?:concern|concerning|worrisome) (?:for|of)', 'question(?:able| of)?',
  _EXCLUDE, 'equivocal', r'favou?r(?:ed|s|ing)?', r'presum\w+', 'apparent', 'perhaps', 'versus', 'vs',
  r'differential\w*', 'borderline', r'consider\w*', r'potential\w*', 'either', 'for evaluation of',
)  # fmt: skip
"""Leaves open what follows."""

DOUBTED = words(
  r'(?:can ?not|not) (?:\w+ )?(?:be )?(?:\w+ )?(?:excluded|ruled out)', 'difficult to exclude', 'less likely',
  r'(?:is|are|remains?|also|be|another) (?:\w+ )?(?:possible|suspected|questioned|considered|an? (?:\w+ )?possibility'
  r'|possibility|(?:a )?consideration|a (?:\w+ )?concern|likely|unlikely|probable|questionable|equivocal|questionable)',
  'may be (?:present|seen)', 'suspected(?= ?(?:,|$))',
)  # fmt: skip
"""Leaves open what stands before it."""

HARMLESS = re.compile(
  r'\b(?:no|without|not)(?: (?:significant(?:ly)?|interval|definite|appreciabl[ey]|substantial(?:ly)?|evidence|of|any'
  r'|other|major|acute|gross|much|relevant|marked))* (?:chang\w*|increase|decrease|worsening|improvement|progression'
  r'|differen\w+)(?: in| of| from)?\b|\bnot only\b|\bno (?:comparison\w*|prior\w*|previous|doubt)\b|\bgram negative\b'
)
"""Holds a negation that denies nothing ("no interval change in the effusion")."""

BREAKS = re.compile(
  r';|\b(?:but|however|although|though|except(?: for)?|aside from|apart from|other than|whereas|while|yet|which|despite'
  r'|in spite of|with the exception of)\b|\b(?:and )?there (?=is|are|was|were|has|have|may|appears?|remains?)'
)
"""No cue reaches across these."""

STOPS_DENIAL = words(
  'with(?! or without)', r'(?:due|secondary|related|owing|attribut\w+) to', 'because', 'in the setting of', 'given',
  'as well as (?=the |a )',
  'and (?=(?:the|a|an|is|are|mild|small|moderate|minimal|severe|stable|unchanged|persistent|increased|bibasilar|low) )',
)  # fmt: skip
"""A denial ends here: "no pneumothorax with a small effusion"."""

JOINS = words('(?:consistent|compatible|associated|in keeping|along|together|comparison|compared|correlat\\w+) with')
"""A `with` that stops nothing."""

PRESENT = words(
  '(?:a |an |the )?(?:mild|small|moderate|minimal|severe|stable|unchanged|persistent|increased|bibasilar|left|right'
  r'|bilateral|basilar|low|trace|tiny|new|scattered|patchy|streaky|old|chronic|healed)\w*'
)
"""How an assertion begins after a comma: "no pneumothorax, small left effusion"."""

UNCHANGED = words('stable', 'unchanged', 'similar')
"""Says of a part of the body neither that it is normal nor that it is not."""

VERB = words(
  'is|are|was|were|has|have|had|appears?|remains?|demonstrates?|shows?|reveals?|suggests?|seems?|looks?|measures?'
)
