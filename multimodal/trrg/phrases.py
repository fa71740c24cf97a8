"""The words of the rule labeller: what names each observation, what denies it, what leaves it open (spec 5.3).

The seeds follow the phrases of the public CheXpert labeller as the spec lists them; what was added was read off the
3,080 reports of the Open-i collection. Everything is matched in a lower-case sentence whose hyphens are spaces.
"""

from __future__ import annotations

import re

from multimodal.trrg.observations import NEGATIVE, OBSERVATIONS, POSITIVE, UNCERTAIN

_OF = {name: k for k, name in enumerate(OBSERVATIONS)}

FINDINGS = {
  'Enlarged Cardiomediastinum': r'(?:cardio)?mediastinal (?:widening|enlargement)|(?:widening|enlargement) of the'
  r' (?:superior |upper )?(?:cardio)?mediastin\w+',
  'Cardiomegaly': r'cardiomegaly|(?:cardiac|heart) enlargement|enlargement of the (?:heart|cardiac silhouette)',
  'Lung Opacity': r'opaci\w+|infiltrat\w*|airspace (?:disease|process|density|densities)|scar\w*'
  r'|(?:increased|prominent|coarse\w*|accentuated|abnormal|diffuse) (?:\w+ )?interstitial (?:lung )?'
  r'(?:markings?|patterns?|changes?)|interstitial (?:lung |pulmonary )?(?:prominence|disease|thickening|infiltrate\w*)'
  r'|reticul\w+|(?:pulmonary|interstitial|lung) fibrosis',
  'Lung Lesion': r'mass|masses|nodul(?!ar (?:opaci|densi))\w*|nodular (?:opaci|densi)\w+|tumors?|neoplas\w+'
  r'|cavitary lesions?|lung lesions?|pulmonary lesions?|metasta\w+|carcinoma|malignan\w+',
  'Edema': r'edema|heart failure|chf|(?:vascular|pulmonary|venous) (?:\w+ )?congestion|congestive (?:changes|failure)'
  r'|cephalization|vascular (?:engorgement|prominence|redistribution)|fluid overload|volume overload',
  'Consolidation': r'consolidat\w+',
  'Pneumonia': r'(?:broncho)?pneumonias?|infections?|infectious (?:process\w*|etiolog\w+|disease|infiltrat\w+)',
  'Atelectasis': r'atelecta\w+|(?:lobar|lung|lobe|segmental|partial|alveolar) collapse|volume loss|loss of (?:lung )?volume',
  'Pneumothorax': r'(?:hydro)?pneumothora\w+|ptx',
  'Pleural Effusion': r'effusions?|pleural (?:\w+ )?fluid|fluid (?=blunts|in the (?:pleura|fissure))|hydropneumothora\w+'
  r'|hemothora\w+',
  'Pleural Other': r'pleural (?:\w+ )?(?:thickening|scar\w*|fibrosis|plaques?|calcifications?)|fibrothorax'
  r'|pleuro ?parenchymal (?:\w+ )?(?:thickening|scar\w*)|thickening of the pleura|fibrosis|apical cap(?:ping)?',
  'Fracture': r'fractur\w+',
  'Support Devices': r'pacer\w*|pacemakers?|pacing (?:device|wires?|leads?)|lines?|picc|tubes?|catheters?|drains?'
  r'|leads?|(?:prosthetic|artificial|mechanical|replaced|bioprosthetic|mitral|aortic)? ?valves?|valvular prosthes\w+'
  r'|port|ports|port a cath|mediport|portacath|hardware|a?icd|defibrillators?|stents?|stimulators?|electrodes?|devices?'
  r'|prosthes\w+|arthroplast\w+|cannulas?|balloon pump|sternotomy wires?|sternal wires?',
}
"""Name -> words whose mention asserts the observation unless it is denied or left open."""

EXCEPTIONS = {
  'Lung Opacity': r'pleural (?:\w+ )?scar\w*|pleuro ?parenchymal (?:\w+ )?scar\w*|opacified|(?:contrast|barium)\w* opaci\w+',
  'Lung Lesion': r'calcified (?:\w+ )?(?:pulmonary |lung )?(?:nodul\w+|granulom\w+|mass\w*)|massive\w*'
  r'|nodular calcification\w*|mass ?like effect|mass effect',
  'Edema': r'(?:soft tissue|subcutaneous) edema',
  'Pneumonia': r'(?:prior|previous|history of) (?:\w+ )?(?:pneumonia|infection)',
  'Pleural Effusion': r'pericardial (?:\w+ )?effusions?',
  'Pleural Other': r'(?:pulmonary|interstitial|lung|cystic) fibrosis',
  'Support Devices': r'(?:kerley|fracture|fissure|pleural|skin|septal|paraspinal|junction|b|stripe|psoas|mid) lines?'
  r'|line of|in line|(?:lead|leads) to|(?:mitral|aortic) valves? calcif\w+|calcif\w+ (?:mitral|aortic) valves?',
}
"""Name -> what looks like its words and is not; such a stretch is skipped."""

_NORMAL = r'(?:normal|unremarkable|within (?:\w+ )?(?:normal )?limits|nonenlarged|(?:no|without) (?:\w+ ){0,3}'
_NORMAL += r'(?:abnormalit\w+|acute findings?|acute disease))'
_LARGE = r'(?:enlarged|enlargement|widened|widening|dilated|big|increased)'
_OPEN = (
  r'(?:borderline(?: \w+)?(?: in)?|upper limits? of normal|upper (?:limits?|normal)|top normal|high normal|prominent'
)
_OPEN += r'|prominence|normal to mildly enlarged|upper limits normal)'

ANATOMY = (
  (
    _OF['Cardiomegaly'],
    r'hearts?(?: size| shadow| silhouette| contours?)?(?! failure| disease| valve| rate| sounds)'
    r'|cardiac (?:silhouettes?|size|contours?|shadow|structures)|cardiac(?=(?: size)? and (?:the )?(?:medi|hil|vasc|pulm))'
    r'|cardiopericardial silhouette|cardiac(?=, )',
    ((_OPEN, UNCERTAIN), (_LARGE + r'|large', POSITIVE), (_NORMAL, NEGATIVE)),
  ),
  (
    _OF['Enlarged Cardiomediastinum'],
    r'(?:cardio)?mediastin(?:um|al)(?! (?:wid|enlarg|lymph|aden|calc|clip|drain|wire|hema|shift|mass|fat|node|granul))'
    r'(?: silhouettes?| contours?| structures?| shadows?| size| width| borders?)?',
    ((_OPEN, UNCERTAIN), (_LARGE, POSITIVE), (_NORMAL, NEGATIVE)),
  ),
  (
    _OF['Lung Opacity'],
    r'lungs?(?: fields?| parenchyma| zones?| bases?| apices)?(?! volumes?| base atel| cancer| disease| nod| mass)'
    r'|chest (?=is clear)',
    ((r'clear(?! of)', NEGATIVE), (_NORMAL, NEGATIVE)),
  ),
  (
    _OF['Lung Opacity'],
    r'interstitial markings?|interstitium',
    ((r'increased|prominent|coarse\w*|accentuated', POSITIVE), (_NORMAL, NEGATIVE)),
  ),
  (
    _OF['Edema'],
    r'(?:pulmonary |central )*(?:vasculature|vascularity|vascular (?:markings?|pattern)|vessels)',
    (
      (r'congest\w+|engorged|increased|indistinct|cephalized|prominent', POSITIVE),
      (r'not increased|not engorged|not congested', NEGATIVE),
      (_NORMAL, NEGATIVE),
    ),
  ),
  (
    _OF['Pleural Effusion'],
    r'(?:costophrenic|cp|costo phrenic) (?:angles?|sulc\w+|recess\w*)',
    (
      (r'blunt\w*|obscur\w+|fluid blunts', UNCERTAIN),
      (r'sharp\w*|clear|preserved|' + _NORMAL, NEGATIVE),
    ),
  ),
  (
    _OF['Pleural Effusion'],
    r'pleural (?:spaces?|surfaces?|recess\w*)|pleura',
    ((r'clear|' + _NORMAL, NEGATIVE),),
  ),
  (
    _OF['Fracture'],
    r'bones|(?:bony|osseous|skeletal) (?:structures?|thorax|skeleton)|skeleton|ribs|bony and soft tissue structures',
    ((r'intact|' + _NORMAL, NEGATIVE),),
  ),
)
"""(observation, words of a part of the body, ((what is said of it, label), ...)): a bare mention says nothing."""

ONLY_DENIED = (
  (_OF['Fracture'], r'(?:bony|osseous|skeletal|bone) (?:\w+ )?(?:abnormalit\w+|findings?|lesions?|process)'),
)
"""Words that say something of an observation only under a negation."""

SAYS_NORMAL = re.compile(
  r'\b(?:no|without|negative for)\b[^;|]*?\b(?:acute|active|significant|radiographic)\b[^;|]*?'
  r'\b(?:abnormalit\w+|diseases?|process\w*|findings?|pathology|change|disorder)\b'
  r'|\bno (?:evidence of )?(?:(?:cardio)?pulmonary |cardiac |intrathoracic |thoracic )*(?:abnormalit\w+|disease|findings)\b'
  r'|\b(?:normal|negative|unremarkable) (?:\w+ ){0,3}(?:chest|examination|exam|study|radiographs?|films?|x ?ray|appearance)\b'
  r'|\b(?:chest|examination|exam|study|radiographs?|x ?ray)(?: \w+){0,2} (?:is |are |appears? )?'
  r'(?:normal|negative|unremarkable|within normal limits)\b'
)
"""A sentence that says that all is well without naming what."""

DENIES = re.compile(
  r'\b(?:no|without|absence of|absent|negative for|free of|free from|clear of|cleared of|rules? out|ruling out|nor|neither'
  r'|devoid of|(?:does|do|did) not (?:\w+ )?(?:demonstrate|show|reveal|have|suggest|identify|see|contain)'
  r'|resolution of|resolved|not (?=enlarged|increased|widened|dilated|congested|engorged|prominent|blunted)'
  r'|rather than|lack of|never|failed to (?:demonstrate|show|reveal)|exclud\w+(?! by| from))\b'
)
"""Denies what follows."""

DENIED = re.compile(
  r'\b(?:(?:not|never) (?:\w+ )?(?:seen|identified|present|visualized|evident|appreciated|demonstrated|noted|detected'
  r'|observed|suspected|apparent|found|visible)|absent|(?:has|have|had) (?:\w+ )?(?:resolved|cleared|disappeared)'
  r'|resolved|no longer (?:\w+ )?(?:seen|present|identified|visualized|evident|apparent|visible|noted)|ruled out|excluded'
  r'|not an? (?:issue|concern))\b|: ?(?:none|no|negative|absent)\b'
)
"""Denies what stands before it."""

DOUBTS = re.compile(
  r'\b(?:possib\w+|probab\w+|likely|unlikely|may|might|could|suggest\w*|suspicious for|suspicion (?:of|for)|suspect(?:ed)?'
  r'|concern(?:ing)? (?:for|of)|worrisome for|question(?:able| of)?|(?:can ?not|can not|not|difficult to|hard to|unable to'
  r'|does not|do not|would not) (?:\w+ )?exclude|equivocal|favou?r(?:ed|s|ing)?|presum\w+|apparent|perhaps|versus|vs'
  r'|suspicious|differential\w*|borderline|consider\w*|versus|potential\w*|evaluat\w+ for|evidence for possible'
  r'|indeterminate for|either|cannot rule out)\b|\?'
)
"""Leaves open what follows."""

DOUBTED = re.compile(
  r'\b(?:(?:can ?not|can not|not) (?:\w+ )?(?:be )?(?:\w+ )?(?:excluded|ruled out)|(?:is|are|remains?|also|be) (?:\w+ )?'
  r'(?:possible|suspected|questioned|considered|a (?:\w+ )?(?:possibility|consideration|concern)|likely|unlikely|probable'
  r'|questionable|equivocal)|may be (?:\w+ )?(?:present|seen)|less likely|difficult to exclude|not excluded)\b|\?'
)
"""Leaves open what stands before it."""

HARMLESS = re.compile(
  r'\b(?:no|without|not)(?: (?:significant(?:ly)?|interval|definite|appreciable|substantial(?:ly)?|evidence|of|any|other|major'
  r'|acute|gross|much|relevant|marked))*'
  r' (?:chang\w*|increase|decrease|worsening|improvement|progression|differen\w+)(?: in| of| from)?\b'
  r'|\bnot only\b|\bno comparison\w*|\bno prior\w*|\bno previous\b|\bgram negative\b'
  r'|\b(?:no|without) doubt\b'
)
"""Holds a negation that denies nothing ("no interval change in the effusion")."""

BREAKS = re.compile(
  r';|\b(?:but|however|although|though|except(?: for)?|aside from|apart from|other than|whereas|while|yet|which|despite'
  r'|in spite of|with the exception of)\b|\b(?:and )?there (?=is|are|was|were|has|have|may|appears?|remains?)'
)
"""No cue reaches across these."""

STOPS_DENIAL = re.compile(
  r'\bwith\b(?! or without)|\b(?:due|secondary|related|owing|attribut\w+) to\b|\bbecause\b|\bin the setting of\b|\bgiven\b'
  r'|\band (?=(?:the|a|an|is|are|mild|small|moderate|minimal|severe|stable|unchanged|persistent|increased|bibasilar|low)\b)'
  r'|\bon top of\b|\bas well as (?=the|a)\b'
)
"""A denial ends here: "no pneumothorax with a small effusion"."""

JOINS = re.compile(
  r'\b(?:consistent|compatible|associated|in keeping|along|together|correlat\w+|comparison|compared) with\b'
)
"""A `with` that stops nothing."""

PRESENT = re.compile(
  r'(?:a |an |the )?(?:mild|small|moderate|minimal|severe|stable|unchanged|persistent|increased|bibasilar|left|right'
  r'|bilateral|basilar|low|trace|tiny|new|scattered|patchy|streaky|old|chronic|healed)\w*\b'
)
"""How an assertion begins after a comma: "no pneumothorax, small left effusion"."""

VERB = re.compile(
  r'\b(?:is|are|was|were|has|have|had|appears?|remains?|demonstrates?|shows?|reveals?|suggests?|seems?|looks?|measures?)\b'
)
