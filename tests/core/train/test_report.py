"""The page holds what it is given, asks nothing of the network, and shows nothing unescaped."""

import base64
import html.parser
import re

import matplotlib.figure
import numpy as np
import pytest
from ml_collections import ConfigDict

from core.train import curves, report

HISTORY = [
  row
  for step in range(10, 60, 10)
  for row in (
    {'step': step, 'stage': 'train', 'kind': 'train', 'loss': 1.0 / step, 'learning_rate': 1e-3}
    | {f'risk_{d}': 0.5 + d / step for d in range(3)},
    {'step': step, 'stage': 'train', 'kind': 'eval', 'val/biometrics/frame/eer': 1.0 / step},
  )
]


class Page(html.parser.HTMLParser):
  """Texts, image types and targets of a page; every tag must be closed by its own."""

  VOID = {'meta', 'img', 'br', 'link', '!doctype'}

  def __init__(self, path):
    super().__init__()
    self.open, self.texts, self.images, self.links, self.tags = [], [], [], [], set()
    self.feed(path.read_text())
    assert not self.open

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.add(tag)
    self.images += [attrs['src']] if tag == 'img' else []
    self.links += [attrs['href']] if 'href' in attrs else []
    self.open += [] if tag in self.VOID else [tag]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)

  @property
  def text(self):
    return '\n'.join(self.texts)


def drawing(points=3):
  figure = matplotlib.figure.Figure()
  figure.add_subplot().plot(np.random.default_rng(0).random(points), '.')
  return figure


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  path = tmp_path_factory.mktemp('report') / 'deep' / 'report.html'
  pixels = matplotlib.figure.Figure()
  pixels.add_subplot().imshow(np.zeros((4, 4)))
  report.write(
    path,
    title='a <b> title',
    command="python -m launch.train --config.data.protocol='A&B->C'",
    summary={'auc': 0.123456, 'system': 'fas.fas_aug'},
    history=HISTORY,
    entries={'risk': ('phone', 'tablet', 'dslr')},
    evaluations={'val/biometrics': {'eer': 0.25}, 'test/biometrics': {'eer': 0.5, 'auc': float('nan')}},
    best_step=30,
    sections=[
      report.Section('Errors', 'First.\n\n<script>second</script>', [
        report.Figure(drawing(), caption='curve & co'),
        report.Figure(pixels),
        report.Figure(image=np.full((2, 3, 3), 200, np.uint8)),
        report.Table(['attack', 'rate'], [['<print>', 0.03125], ['replay', None], ['mask', True]], 'by attack'),
      ])
    ],
    config=ConfigDict({'seed': 0, 'data': {'margin': 0.5, 'root': '<here>'}}),
    unread=['data.margin'],
    platform={'devices': '2 x cpu'},
  )  # fmt: skip
  return path, Page(path)


def test_it_asks_nothing_of_the_network(page):
  path, parsed = page
  assert all(source.startswith('data:image/') for source in parsed.images)
  assert all(link.startswith('#') for link in parsed.links)
  assert parsed.tags.isdisjoint({'script', 'link', 'iframe', 'object'})
  assert not re.search(r'https?://|url\(|@import', path.read_text())


def test_everything_is_there_and_escaped(page):
  text = page[1].text
  for expected in ('a <b> title', "--config.data.protocol='A&B->C'", 'curve & co', '<print>', '<script>second</script>',
                   '0.1235', '0.03125', '–', 'yes', 'by attack', 'Never read by this run: data.margin.', "'<here>'",
                   '2 x cpu', 'val/biometrics', 'nan'):  # fmt: skip
    assert expected in text, expected
  assert '<tr class=unread><td><code>data.margin</code>' in page[0].read_text()


def test_drawings_are_svg_and_pixels_png(page):
  kinds = [source.split(';')[0] for source in page[1].images]
  # The section's drawing and its two pictures; then the curves: loss, other scalars, risks, evaluations.
  assert kinds == ['data:image/svg+xml', *['data:image/png'] * 2, *['data:image/svg+xml'] * 4]
  data = [base64.b64decode(source.split(',')[1]) for source in page[1].images]
  assert data[0].lstrip().startswith(b'<?xml') and data[2].startswith(b'\x89PNG')


def test_a_drawing_of_very_many_points_becomes_a_png(tmp_path):
  path = report.write(tmp_path / 'r.html', title='t', summary={},
                      sections=[report.Section('s', items=[report.Figure(drawing(40_000))])])  # fmt: skip
  assert Page(path).images[0].startswith('data:image/png')


def test_an_empty_run_still_has_a_page(tmp_path):
  assert Page(report.write(tmp_path / 'r.html', title='t', summary={})).texts


def test_vector_metrics_are_drawn_together_under_their_names():
  found = curves.learning(HISTORY, {'risk': ('phone', 'tablet', 'dslr')}, 30)
  assert [caption.split(':')[0] for _, caption in found][-1] == 'risk'
  labels = [[line.get_label() for line in figure.axes[0].lines if not line.get_label().startswith('_')]
            for figure, _ in found]  # fmt: skip
  assert labels == [['loss'], ['learning_rate'], ['phone', 'tablet', 'dslr']]
  np.testing.assert_allclose(found[2][0].axes[0].lines[1].get_ydata(), [0.5 + 1 / s for s in range(10, 60, 10)])
  unnamed = curves.learning(HISTORY, {}, None)[2][0].axes[0].lines
  assert [line.get_label() for line in unnamed] == ['0', '1', '2']


def test_a_name_that_merely_ends_in_a_number_is_no_vector():
  rows = [{'step': 1, 'stage': 's', 'kind': 'train', 'loss': 1.0, 'top_5': 1.0, 'x_0': 1.0}]
  assert len(curves.learning(rows, {})) == 2


def test_an_evaluation_that_ran_once_is_no_curve():
  assert not curves.evaluations(HISTORY[:2]) and len(curves.evaluations(HISTORY)) == 1


def test_overview_of_folds(tmp_path):
  folds = {'to_phone': {'test/b/auc': 0.5, 'test/b/eer': 0.25}, 'to_dslr': {'test/b/auc': 1.0}}
  path = report.write_overview(tmp_path / 'report.html', title='t', summary={}, folds=folds)
  page = Page(path)
  assert {'to_phone/report.html', 'to_dslr/report.html'} <= set(page.links)
  table = report.fold_table(folds, ['test/b/auc', 'test/b/eer'])
  assert table.rows == [['to_phone', 0.5, 0.25], ['to_dslr', 1.0, None], ['mean', 0.75, 0.25]]
  assert report.fold_table(folds, ['test/b/eer', 'test/b/absent']).header == ['fold', 'test/b/eer']
  assert report.transposed(table).header == ['', 'to_phone', 'to_dslr', 'mean']
  assert report.transposed(table).rows == [['test/b/auc', 0.5, 1.0, 0.75], ['test/b/eer', 0.25, None, 0.25]]


def test_figures_need_one_content():
  with pytest.raises(ValueError, match='exactly one'):
    report.Figure()
  with pytest.raises(ValueError, match='uint8'):
    report.write('unused.html', title='t', summary={},
                 sections=[report.Section('s', items=[report.Figure(image=np.zeros((2, 2)))])])  # fmt: skip
