"""Readers of reports: every layout written in small as it is on disk, every kind of damage, and the real files."""

import collections
import gzip
import json
import pathlib
import zipfile

import cv2
import numpy as np
import pytest

from core.errors import UserError
from multimodal.trrg import datasets
from multimodal.trrg.datasets import gathering, sections, tables


def put(root: pathlib.Path, files: dict[str, str | bytes]) -> pathlib.Path:
  for name, content in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return root


def film(seed: int = 0, suffix: str = '.png') -> bytes:
  coarse = np.random.default_rng(seed).integers(0, 256, (8, 10), np.uint8)
  return cv2.imencode(suffix, cv2.resize(coarse, (100, 80)))[1].tobytes()


def kinds(corpus: tables.Corpus) -> list[str]:
  return [kind for kind, _, _ in corpus.problems]


def study_of(corpus: tables.Corpus, uid: str) -> tables.Study:
  return next(study for study in corpus.studies if study.id == uid)


def written(corpus: tables.Corpus, root: pathlib.Path) -> tables.Films:
  """The films, through records: every path that a reader gives has to lead to a picture."""
  tables.write(root, corpus, pixels=64)
  return tables.Films(root, corpus.name)


# Kaggle.

REPORTS = """uid,MeSH,Problems,image,indication,comparison,findings,impression
1,normal,normal,Xray Chest PA and Lateral,TB test,None.,"The heart is normal, no effusion.",Normal chest x-XXXX.
2,Cardiomegaly/borderline;Opacity/lung/base/left,Cardiomegaly;Opacity,"Chest, 2 views",Cough.,,"Line one.
Line two.",Big heart.
3,normal,normal,,,,,"Normal, without findings."
1,normal,normal,,,,A second time.,
4,short line
"""
PROJECTIONS = """uid,filename,projection
1,1_IM-0001-3001.dcm.png,Lateral
1,1_IM-0001-4001.dcm.png,Frontal
2,2_IM-0652-1001.dcm.png,Frontal
9,9_IM-0001-1001.dcm.png,Frontal
"""


def kaggle_files() -> dict[str, str | bytes]:
  names = ('1_IM-0001-3001', '1_IM-0001-4001', '2_IM-0652-1001')
  films = {f'images/images_normalized/{name}.dcm.png': film(seed) for seed, name in enumerate(names)}
  return {'indiana_reports.csv': REPORTS, 'indiana_projections.csv': PROJECTIONS, **films}


def test_kaggle(tmp_path):
  corpus = datasets.read('auto', put(tmp_path / 'x', kaggle_files()).parent)
  assert corpus.name == 'iu_xray_kaggle' and [study.id for study in corpus.studies] == ['1', '2']
  one, two = corpus.studies
  assert (one.report, one.impression) == ('The heart is normal, no effusion.', 'Normal chest x-XXXX.')  # XXXX stays
  assert (one.indication, one.comparison, one.patient) == ('TB test', 'None.', '1')
  assert two.report == 'Line one.\nLine two.' and two.problems == 'Cardiomegaly/borderline;Opacity/lung/base/left'
  assert kinds(corpus) == ['no report', 'duplicate id', 'bad line', 'films without a report']
  assert corpus.problems[-1][2] == '1 films of 1 uids, the first 9'
  found = written(corpus, tmp_path / 'records')
  assert [found.view(place) for place in found.of('1')] == ['frontal', 'lateral']
  coarse = cv2.imdecode(np.frombuffer(film(1), np.uint8), 0)
  np.testing.assert_allclose(found.views('1', 1)[0].mean(), coarse.mean(), atol=2)


def test_sections_are_chosen_by_name(tmp_path):
  root = put(tmp_path, kaggle_files())
  both = datasets.read('kaggle', root, sections='findings+impression')
  assert [study.report for study in both.studies] == [
    'The heart is normal, no effusion. Normal chest x-XXXX.', 'Line one.\nLine two. Big heart.',
    'Normal, without findings.',
  ]  # fmt: skip
  impressions = datasets.read('kaggle', root, sections='impression')
  assert [study.id for study in impressions.studies] == ['1', '2', '3']
  assert impressions.studies[1].report == 'Big heart.' and impressions.studies[1].findings == 'Line one.\nLine two.'
  with pytest.raises(UserError, match="no sections 'finding'.*Did you mean 'findings'"):
    datasets.read('kaggle', root, sections='finding')


def test_kaggle_without_projections_has_texts_alone(tmp_path):
  corpus = datasets.read('kaggle', put(tmp_path, {'indiana_reports.csv': REPORTS}))
  assert kinds(corpus)[0] == 'missing file' and not any(study.films for study in corpus.studies)


def test_our_split_is_everyone_s_and_has_its_shares():
  counts = collections.Counter(gathering.own_split(f'CXR{uid}') for uid in range(4000))
  assert abs(counts['train'] / 4000 - 0.7) < 0.03 and abs(counts['val'] / 4000 - 0.1) < 0.02
  assert counts['test'] == 4000 - counts['train'] - counts['val']
  # Written down: another split would make published numbers of ours untrue.
  assert [gathering.own_split(f'CXR{uid}') for uid in range(1, 13)] == [
    'train', 'test', 'train', 'test', 'train', 'train', 'val', 'train', 'train', 'train', 'test', 'val',
  ]  # fmt: skip


# Open-i.


def openi_xml(number: int, findings: str | None, images: list[str], major: list[str], namespace: str = '') -> str:
  parts = [f'<AbstractText Label="FINDINGS">{findings}</AbstractText>'] if findings else []
  parts.append('<AbstractText Label="FINDINGS"/>')
  headings = ''.join(f'<major>{heading}</major>' for heading in major)
  parents = ''.join(
    f"""
   <parentImage id="{image}">
      <figureId>F{place}</figureId>
      <caption>Xray Chest PA and Lateral</caption>
      <panel type="single">
         <url>/hadoop/storage/radiology/extract/{image}.jpg</url>
         <imgModality>7</imgModality>
      </panel>
   </parentImage>"""
    for place, image in enumerate(images, 1)
  )
  return f"""<?xml version="1.0" encoding="utf-8"?>
<eCitation{namespace}>
   <meta type="rr"/>
   <uId id="CXR{number}"/>
   <pmcId id="{number}"/>
   <docSource>CXR</docSource>
   <IUXRId id="{number}"/>
   <licenseType>open-access</licenseType>
   <title>Indiana University Chest X-ray Collection</title>
   <MedlineCitation Owner="Indiana University" Status="supplied by publisher">
      <Article PubModel="Electronic">
         <Abstract>
            <AbstractText Label="COMPARISON">None.</AbstractText>
            <AbstractText Label="INDICATION">Chest &amp; back pain</AbstractText>
            {''.join(parts)}
            <AbstractText Label="IMPRESSION">Normal chest x-XXXX.</AbstractText>
         </Abstract>
      </Article>
   </MedlineCitation>
   <MeSH>
      {headings}
      <automatic>heart</automatic>
   </MeSH>{parents}
</eCitation>
"""


def openi_files(namespace: str = '') -> dict[str, str | bytes]:
  one, two = ['CXR1_1_IM-0001-3001', 'CXR1_1_IM-0001-4001'], ['CXR10_IM-0002-1001']
  reports = {
    '1': openi_xml(1, 'Clear  lungs.\n  No effusion.', one, ['normal'], namespace),
    '10': openi_xml(10, 'Big heart.', two, ['Cardiomegaly/mild', 'Opacity/lung/base/left'], namespace),
    '2': openi_xml(2, None, [], [], namespace),
    '3': '<eCitation><uId id="CXR3"/>',
  }
  files = {f'NLMCXR_reports/ecgen-radiology/{name}.xml': text for name, text in reports.items()}
  return files | {f'NLMCXR_png/{name}.png': film(seed) for seed, name in enumerate(one + two)}


@pytest.mark.parametrize(
  'namespace', ['', ' xmlns="http://openi.nlm.nih.gov/x" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"']
)
def test_openi(tmp_path, namespace):
  root = put(tmp_path, openi_files(namespace))
  corpus = datasets.read('auto', root)
  assert corpus.name == 'iu_xray_openi' and [study.id for study in corpus.studies] == ['CXR1', 'CXR10']
  one, ten = corpus.studies
  assert (one.report, one.impression) == ('Clear lungs. No effusion.', 'Normal chest x-XXXX.')
  assert (one.indication, one.comparison) == ('Chest & back pain', 'None.')
  assert (one.problems, ten.problems) == ('normal', 'Cardiomegaly/mild;Opacity/lung/base/left')
  assert [kind for kind, path, _ in corpus.problems] == ['no report', 'broken XML']
  assert [study.split for study in corpus.studies] == [gathering.own_split('CXR1'), gathering.own_split('CXR10')]
  assert {film.view for film in one.films} == {'other'}
  assert len(written(corpus, tmp_path / 'records')) == 3

  # With the Kaggle copy's list the views are known.
  put(root, {'indiana_projections.csv': PROJECTIONS + '10,10_IM-0002-1001.dcm.png,Frontal\n'})
  corpus = datasets.read('openi', root)
  assert [[film.view for film in study.films] for study in corpus.studies] == [['lateral', 'frontal'], ['frontal']]


# R2Gen.


def r2gen_annotation() -> dict:
  def item(uid, report, split, films=2):
    paths = [f'{uid}/{place}.png' for place in range(films)]
    return {'id': uid, 'report': report, 'image_path': paths, 'split': split}

  return {
    'train': [item('CXR2384_IM-0942', 'The heart size is normal . ', 'train'), item('CXR1_IM-0001', '', 'train')],
    'val': [item('CXR3_IM-0003', 'No effusion .', 'val', 1)],
    'test': [item('CXR4_IM-0004', 'A XXXX nodule .', 'test'), {'id': 'CXR5', 'image_path': []}],
  }


def test_r2gen(tmp_path):
  images = {f'iu_xray/images/{uid}/{n}.png': film(n) for uid in ('CXR2384_IM-0942', 'CXR4_IM-0004') for n in (0, 1)}
  images |= {'iu_xray/images/CXR3_IM-0003/0.png': film(2), 'iu_xray/images/CXR9_IM-0009/0.png': film(3)}
  root = put(tmp_path, {'iu_xray/annotation.json': json.dumps(r2gen_annotation()), **images})
  corpus = datasets.read('auto', root)
  assert datasets.recognise(root) == 'r2gen' and corpus.name == 'iu_xray'
  assert [(study.id, study.patient, study.split) for study in corpus.studies] == [
    ('CXR2384_IM-0942', 'CXR2384', 'train'), ('CXR3_IM-0003', 'CXR3', 'val'), ('CXR4_IM-0004', 'CXR4', 'test'),
  ]  # fmt: skip
  assert corpus.studies[0].report == corpus.studies[0].findings == 'The heart size is normal .'
  assert kinds(corpus) == ['no report', 'bad item']
  found = written(corpus, tmp_path / 'records')
  assert len(found) == 5 and len(found.views('CXR4_IM-0004')) == 2  # the orphan on disk was never looked at


def test_r2gen_mimic_counts_films(tmp_path):
  def item(dicom, split):
    path = [f'p10/p10000032/s50414267/{dicom}.jpg']
    return {
      'id': dicom, 'study_id': 50414267, 'subject_id': 10000032, 'report': 'No effusion .', 'image_path': path,
      'split': split,
    }  # fmt: skip

  annotation = {'train': [item('02aa804e', 'train'), item('174413ec', 'train')], 'val': [], 'test': []}
  images = {f'images/p10/p10000032/s50414267/{name}.jpg': film(0, '.jpg') for name in ('02aa804e', '174413ec')}
  root = put(tmp_path, {'mimic.json': json.dumps(annotation), **images})
  corpus = datasets.read('auto', root, annotation='mimic.json')
  assert corpus.name == 'mimic_cxr' and [study.id for study in corpus.studies] == ['02aa804e', '174413ec']
  assert {(study.patient, study.report, len(study.films)) for study in corpus.studies} == {
    ('10000032', 'No effusion .', 1)
  }
  assert len(written(corpus, tmp_path / 'records')) == 2


def test_a_flat_annotation_is_a_test_set_and_its_sections_are_its_own(tmp_path):
  flat = [{'id': 'a', 'report': 'Clear .', 'image_path': 'a.png', 'labels': [0] * 18}]
  root = put(tmp_path, {'annotation.json': json.dumps(flat)})
  corpus = datasets.read('r2gen', root, sections='findings+impression')
  assert [(study.split, study.findings) for study in corpus.studies] == [('test', '')]
  assert kinds(corpus) == ['sections not chosen']


# MIMIC-CXR.

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___F with new onset ascites  // eval for infection
 
 TECHNIQUE:  Chest PA and lateral
 
 COMPARISON:  None.
 
 FINDINGS: 
 
 There is no focal consolidation, pleural effusion or pneumothorax.  Bilateral
 nodular opacities: likely nipple shadows.
 
 IMPRESSION: 
 
 No acute cardiopulmonary process.
"""  # noqa: W291, W293 as the real ones are
FLAT = (
  'There is no focal consolidation, pleural effusion or pneumothorax.  Bilateral\n nodular opacities: likely nipple '
  'shadows.'
)


def test_sections_of_a_raw_report():
  assert sections.extract(REPORT) == {
    'impression': 'No acute cardiopulmonary process.', 'findings': FLAT,
    'indication': '___F with new onset ascites  // eval for infection', 'comparison': 'None.',
  }  # fmt: skip


@pytest.mark.parametrize(
  ('text', 'findings', 'impression'),
  [
    ('\n FINDINGS:  One.\n \n FINDINGS:  Two.\n', 'Two.', ''),
    ('\n FINDINGS:  One.\n \n FINDINGS:  \n \n IMPRESSION: I.\n', 'One.', 'I.'),
    ('\n FINDINGS AND IMPRESSION:  Both.', '', 'Both.'),
    ('\n FINDNGS:  Misspelt.\n IMPRESSON:  Too.', 'Misspelt.', 'Too.'),
    ('\n CHEST, TWO VIEWS:  \n \n INDICATION: Cough.\n \n CONCLUSION: Fine.', '', 'Fine.'),
    ('\n PA AND LATERAL VIEWS OF THE CHEST:  The lungs are clear.', 'The lungs are clear.', ''),
    ('\n FINDINGS:\n IMPRESSION: Follows at once.', '', 'Follows at once.'),
    ('\n FINDINGS: The ratio is 2:1 and the word\n Note: is not a header, NOR THIS: one.\n',
     'The ratio is 2:1 and the word\n Note: is not a header, NOR THIS: one.', ''),
    ('No headers at all. FINDINGS: in the line.', '', ''),
  ],
)  # fmt: skip
def test_odd_sections(text, findings, impression):
  found = sections.extract(text)
  assert (found['findings'], found['impression']) == (findings, impression)


DICOMS = ('02aa804e-bde0afdd', '174413ec-4ec4c1f7', '2a2277a9-b0ded155', 'e084de3b-be89b11e')
SPLIT = f"""dicom_id,study_id,subject_id,split
{DICOMS[0]},50414267,10000032,train
{DICOMS[1]},50414267,10000032,train
{DICOMS[2]},53189527,10000032,validate
{DICOMS[3]},53911762,11000032,test
"""
METADATA = f"""dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns
{DICOMS[0]},10000032,50414267,"CHEST (PA AND LAT)",LATERAL,3056,2544
{DICOMS[1]},10000032,50414267,"CHEST (PA AND LAT)",PA,3056,2544
{DICOMS[2]},10000032,53189527,CHEST,,3056,2544
{DICOMS[3]},11000032,53911762,CHEST,AP AXIAL,3056,2544
"""
TEXTS = {'10/p10000032/s50414267': REPORT, '11/p11000032/s53911762': '\n IMPRESSION:  Nothing new.\n'}
PLACES = ('p10/p10000032/s50414267', 'p10/p10000032/s50414267', 'p10/p10000032/s53189527', 'p11/p11000032/s53911762')


def mimic_tables(packed: bool = True) -> dict[str, str | bytes]:
  files = {'split': SPLIT, 'metadata': METADATA}
  if packed:
    return {f'jpg/2.0.0/mimic-cxr-2.0.0-{name}.csv.gz': gzip.compress(text.encode()) for name, text in files.items()}
  return {f'jpg/2.0.0/mimic-cxr-2.1.0-{name}.csv': text for name, text in files.items()}


def mimic_reports(form: str) -> dict[str, str | bytes]:
  if form == 'folder':
    return {f'mimic-cxr/2.0.0/files/p{name}.txt': text for name, text in TEXTS.items()}
  return {}


@pytest.mark.parametrize('form', ['folder', 'archive', 'sectioned'])
def test_mimic(tmp_path, form):
  images = {f'jpg/2.0.0/files/{place}/{name}.jpg': film(0, '.jpg') for place, name in zip(PLACES, DICOMS)}
  root = put(tmp_path / 'physionet', {**mimic_tables(packed=form != 'archive'), **mimic_reports(form), **images})
  if form == 'archive':
    with zipfile.ZipFile(root / 'mimic-cxr-reports.zip', 'w') as archive:
      for name, text in TEXTS.items():
        archive.writestr(f'files/p{name}.txt', text)
  if form == 'sectioned':
    lines = ['study,impression,findings,last_paragraph,comparison']
    lines += [f's50414267,No acute cardiopulmonary process.,"{FLAT}",,None.', 's53911762,Nothing new.,,,']
    put(root, {'mimic_cxr_sectioned.csv': '\n'.join(lines) + '\n'})
  corpus = datasets.read('auto', root)
  assert corpus.name == 'mimic_cxr_jpg' and [study.id for study in corpus.studies] == ['s50414267']
  (study,) = corpus.studies
  assert (study.patient, study.split, study.report, study.comparison) == ('p10000032', 'train', FLAT, 'None.')
  assert study.indication == ('' if form == 'sectioned' else '___F with new onset ascites  // eval for infection')
  assert [film.view for film in study.films] == ['lateral', 'frontal']
  assert kinds(corpus) == ['missing report', 'no report']
  found = written(corpus, tmp_path / 'records')
  assert [found.view(place) for place in found.of('s50414267')] == ['frontal', 'lateral']

  both = datasets.read('mimic', root, sections='findings+impression')
  assert [(study.id, study.split) for study in both.studies] == [('s50414267', 'train'), ('s53911762', 'test')]
  assert both.studies[0].report == f'{FLAT} No acute cardiopulmonary process.'
  assert [film.view for film in both.studies[1].films] == ['frontal']


def test_mimic_without_reports_without_views_and_with_a_cut_table(tmp_path):
  root = put(tmp_path, mimic_tables())
  with pytest.raises(UserError, match='no reports of MIMIC-CXR: .*not in MIMIC-CXR-JPG'):
    datasets.read('mimic', root)
  put(root, mimic_reports('folder'))
  metadata = root / 'jpg/2.0.0/mimic-cxr-2.0.0-metadata.csv.gz'
  metadata.unlink()
  corpus = datasets.read('mimic', root)
  assert kinds(corpus)[0] == 'missing file' and {film.view for film in corpus.studies[0].films} == {'other'}
  split = root / 'jpg/2.0.0/mimic-cxr-2.0.0-split.csv.gz'
  split.write_bytes(split.read_bytes()[:-20])
  with pytest.raises(UserError, match=r'split\.csv\.gz cannot be read \(.*Download it again'):
    datasets.read('mimic', root)
  put(root, {'mimic-cxr-reports.zip': b'PK, cut'})
  with pytest.raises(UserError, match='no zip file'):
    datasets.read('mimic', root)


# What goes wrong.


@pytest.mark.parametrize(
  ('files', 'arguments', 'message'),
  [
    ({}, {'layout': 'kagle'}, "no layout 'kagle'.*Did you mean 'kaggle'"),
    ({}, {'layout': 'auto'}, 'no file of a known layout; expected one of annotation.json'),
    ({'x.csv': ''}, {'layout': 'kaggle'}, 'does not hold the reports of IU-Xray as CSV: found x.csv; expected'),
    ({'x.csv': ''}, {'layout': 'openi'}, 'does not hold the reports of Open-i'),
    ({'x.csv': ''}, {'layout': 'mimic'}, 'does not hold MIMIC-CXR-JPG'),
    ({}, {'layout': 'r2gen'}, 'does not hold an annotation of R2Gen: found nothing'),
    ({}, {'layout': 'r2gen', 'annotation': 'a.json'}, 'no annotation file .*a.json'),
    ({'indiana_reports.csv': REPORTS}, {'layout': 'kaggle', 'annotation': 'a.json'}, "the layout 'kaggle' has none"),
    ({'indiana_reports.csv': 'uid,Findings\n1,x\n'}, {'layout': 'kaggle'}, "no column 'MeSH'"),
    ({'indiana_reports.csv': REPORTS.splitlines()[0]}, {'layout': 'kaggle'}, 'no usable report: .*indiana_projections'),
    ({'a/annotation.json': '[]', 'b/annotation.json': '[]'}, {'layout': 'r2gen'}, 'in 2 folders.*name one of them'),
    ({'a/annotation.json': '[]', 'b/annotation.json': '[]'}, {'layout': 'auto'}, 'Name a folder, or the layout'),
    ({'annotation.json': '{"train": '}, {'layout': 'r2gen'}, 'no JSON file'),
    ({'annotation.json': '{"train": 3}'}, {'layout': 'r2gen'}, 'no annotation: expected a list of items'),
    ({'annotation.json': '{"train": []}'}, {'layout': 'auto'}, 'annotation.json has no item'),
    ({'annotation.json': '{"train": []}'}, {'layout': 'r2gen'}, 'no usable report: 0 problems, first it is empty'),
    ({'annotation.json': '[3]'}, {'layout': 'r2gen'}, 'no usable report: 1 problems, first bad item'),
    ({'reports/1.xml': '<a>'}, {'layout': 'auto'}, 'no usable report: 1 problems, first broken XML'),
  ],
)
def test_errors_name_what_is_wrong(tmp_path, files, arguments, message):
  with pytest.raises(UserError, match=message):
    datasets.read(root=put(tmp_path, files), **arguments)


def test_several_layouts_in_one_folder_are_not_guessed(tmp_path):
  root = put(tmp_path, {**kaggle_files(), **openi_files()})
  with pytest.raises(UserError, match=r'files of 2 layouts \(kaggle, openi\)'):
    datasets.read('auto', root)
  assert datasets.read('kaggle', root).name == 'iu_xray_kaggle'


def test_an_absent_root_and_bytes_that_are_no_text(tmp_path):
  with pytest.raises(UserError, match='no folder .*absent'):
    datasets.read('kaggle', tmp_path / 'absent')
  broken = REPORTS.replace('normal, no', 'n\N{LATIN SMALL LETTER E WITH ACUTE}, no').encode('latin-1')
  corpus = datasets.read('kaggle', put(tmp_path, {'indiana_reports.csv': broken}))
  assert 'not UTF-8' in kinds(corpus) and study_of(corpus, '1').report.startswith(
    'The heart is n\N{REPLACEMENT CHARACTER}'
  )


# The real reports.


def test_the_real_reports_of_iu_xray(shared_data):
  corpus = datasets.read('auto', shared_data / 'iu_xray')
  assert len(corpus) == 3080 - 401  # that many have no findings
  assert collections.Counter(kinds(corpus)) == {'no report': 401, 'films without a report': 1}
  both = datasets.read('kaggle', shared_data / 'iu_xray', sections='findings+impression')
  assert len(both) == 3080 - 21
  one = study_of(corpus, '1')
  assert one.report.startswith('The cardiac silhouette and mediastinum size') and one.problems == 'normal'
  assert [film.view for film in one.films] == ['frontal', 'lateral']
  counts = collections.Counter(study.split for study in corpus.studies)
  assert abs(counts['train'] / len(corpus) - 0.7) < 0.03 and min(counts.values()) > 200
  assert sum('XXXX' in study.report for study in corpus.studies) > 800
  assert sum(len(study.films) for study in both.studies) > 5800


def test_the_real_reports_as_records(shared_data, tmp_path):
  corpus = datasets.read('kaggle', shared_data / 'iu_xray')
  (report,) = tables.write(tmp_path, corpus, films=False)
  assert sum(report.counts.values()) == len(corpus)
  columns = tables.load(tmp_path, corpus.name, 'test')
  expected = [study for study in corpus.studies if study.split == 'test']
  assert columns['report'].tolist() == [study.report for study in expected]
  assert columns['problems'].tolist() == [study.problems for study in expected]
  with pytest.raises(
    UserError, match=r"No film of 'iu_xray_kaggle' can be read: .* the first is missing film: .*\.png"
  ):
    tables.write(tmp_path / 'films', tables.Corpus(corpus.name, corpus.studies[:5]))
