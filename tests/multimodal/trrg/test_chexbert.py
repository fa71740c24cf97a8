"""CheXbert against a re-implementation in torch with random weights, and what the labeller does with texts."""

import re

import flax.traverse_util
import jax
import numpy as np
import pytest

from core.data.text import Tokenizer
from core.errors import UserError
from core.nn.bert import Bert
from core.weights import files, table
from multimodal.trrg import chexbert
from multimodal.trrg.observations import NO_FINDING, OBSERVATIONS

TEXTS = (
  'No effusion. The heart is enlarged.',
  'Low lung volumes.\n\nThe heart   is enlarged. ',
  '',
  ' \n\t ',
  'There is a small left effusion, and no pneumothorax is seen. ' * 9,
  'Pneumonia?',
  'No effusion. The heart is enlarged.',
)
POSITIONS = 40


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  """(folder, tokenizer) of a WordPiece learnt from the texts."""
  folder = tmp_path_factory.mktemp('tokenizer')
  made = Tokenizer.train('wordpiece', TEXTS, 120)
  made.save(folder)
  return folder, made


def small(vocabulary):
  return Bert(vocabulary=vocabulary, width=64, depth=2, heads=1, mlp_dim=20, max_positions=POSITIONS)


@pytest.fixture(scope='module')
def checkpoint(tokenizer, tmp_path_factory):
  """A file of random weights in CheXbert's names, large enough that labels differ from text to text."""
  network = chexbert.Network(small(tokenizer[1].vocabulary))
  shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 2), np.int32), np.ones((1, 2), bool))['params']
  rng = np.random.default_rng(0)
  own = {
    path: rng.normal(0, 0.7, leaf.shape).astype(np.float32)
    for path, leaf in flax.traverse_util.flatten_dict(shapes, sep='/').items()
  }
  path = tmp_path_factory.mktemp('weights') / 'chexbert.safetensors'
  tensors = table.export(own, chexbert.LAYOUT)
  files.write(path, {f'model_state_dict.module.{name}': value for name, value in tensors.items()})
  return path


@pytest.fixture(scope='module')
def labeller(checkpoint, tokenizer):
  return chexbert.Labeller(checkpoint, tokenizer[0])


def torch_network(torch, transformers, vocabulary):
  """CheXbert as its authors have it: a BertModel and a list of linear heads on the state of [CLS]."""

  class Labels(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.bert = transformers.BertModel(
        transformers.BertConfig(
          vocab_size=vocabulary, hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=20,
          max_position_embeddings=POSITIONS,
        )
      )  # fmt: skip
      self.linear_heads = torch.nn.ModuleList([torch.nn.Linear(64, 4) for _ in range(13)] + [torch.nn.Linear(64, 2)])

    def forward(self, ids, mask):
      state = self.bert(ids, attention_mask=mask).last_hidden_state[:, 0]
      return [head(state) for head in self.linear_heads]

  torch.manual_seed(0)
  network = Labels().eval()
  with torch.no_grad():
    for parameter in network.parameters():
      parameter.add_(0.5 * torch.randn_like(parameter))
  return network


@pytest.mark.parametrize('zipped', [True, False])
def test_labels_and_logits_equal_those_of_a_torch_network(tmp_path, tokenizer, zipped):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  folder, made = tokenizer
  theirs = torch_network(torch, transformers, made.vocabulary)
  optimizer = torch.optim.Adam(theirs.parameters())
  state = torch.nn.DataParallel(theirs).state_dict()
  state['module.bert.embeddings.position_ids'] = torch.arange(POSITIONS).expand(1, -1)
  content = {
    'epoch': 3,
    'model_state_dict': state,
    'optimizer_state_dict': optimizer.state_dict(),
    'loss': torch.ones(()),
  }
  torch.save(content, tmp_path / 'chexbert.pth', _use_new_zipfile_serialization=zipped)
  labeller = chexbert.Labeller(tmp_path / 'chexbert.pth', folder)
  assert labeller.network.bert == small(made.vocabulary)
  expected, rows, logits = [], np.zeros((len(TEXTS), POSITIONS), np.int32), []
  for row, text in zip(rows, TEXTS):  # one at a time: no padding, in the words of CheXbert's own preparation
    text = re.sub(r'\s+', ' ', text.strip().replace('\n', ' ')).strip()
    ids = [made.cls, *made.encode(text), made.sep]
    ids = ids if len(ids) <= POSITIONS else [*ids[: POSITIONS - 1], made.sep]
    with torch.no_grad():
      logits.append(theirs(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)))
    expected.append([int(head.argmax()) for head in logits[-1]])
    row[: len(ids)] = ids
  ours = jax.jit(labeller.network.apply)(labeller._variables, rows, rows != made.pad)
  for k, head in enumerate(zip(*logits)):
    head = torch.cat(head).numpy()
    assert np.abs(ours[:, k, : head.shape[1]] - head).max() < 1e-4
    assert np.isneginf(ours[:, k, head.shape[1] :]).all()
  labels = labeller(TEXTS)
  np.testing.assert_array_equal(labels, expected)
  assert len(np.unique(labels, axis=0)) > 2 and labels.max() == 3  # the weights are large enough to tell texts apart


def test_a_label_depends_on_its_text_alone(labeller):
  labels = labeller(TEXTS)
  assert labels.shape == (len(TEXTS), len(OBSERVATIONS)) and labels.dtype == np.int8
  assert labels[:, NO_FINDING].max() <= 1
  for text, row in zip(TEXTS, labels):
    np.testing.assert_array_equal(labeller([text])[0], row)
  np.testing.assert_array_equal(labels[2], labels[3])  # no words at all: [CLS] [SEP]
  np.testing.assert_array_equal(labeller(TEXTS[::-1]), labels[::-1])
  np.testing.assert_array_equal(labeller(['The heart\n is enlarged.']), labeller([' The heart is  enlarged. ']))
  assert labeller([]).shape == (0, 14)


def test_a_text_is_run_once_with_others_of_its_length(labeller, monkeypatch):
  runs = []
  label = labeller._label
  monkeypatch.setattr(labeller, '_label', lambda rows, length: runs.append((len(rows), length)) or label(rows, length))
  labeller(TEXTS)
  assert sum(count for count, _ in runs) == len({' '.join(text.split()) for text in TEXTS}) == 5
  assert [length for _, length in runs] == [16, 40] or [length for _, length in runs] == [16, 32, 40]


def test_a_long_text_is_cut_and_keeps_its_end_mark(labeller, tokenizer):
  ids = labeller.encode(TEXTS[4])
  assert len(tokenizer[1].encode(TEXTS[4])) > POSITIONS == len(ids)
  assert ids[-1] == tokenizer[1].sep and ids[:-1] == [tokenizer[1].cls, *tokenizer[1].encode(TEXTS[4])][: POSITIONS - 1]
  np.testing.assert_array_equal(labeller([TEXTS[4]]), labeller([TEXTS[4] + ' more']))


def test_what_does_not_fit_is_refused(checkpoint, tokenizer, tmp_path):
  tensors = files.read(checkpoint)
  less = {name: tensors[name] for name in tensors if 'linear_heads.13' not in name}
  files.write(tmp_path / 'less.safetensors', less)
  with pytest.raises(UserError, match='head_13/kernel: no model_state_dict.module.linear_heads.13.weight'):
    chexbert.load(tmp_path / 'less.safetensors')
  files.write(tmp_path / 'bert.safetensors', {'bert.embeddings.LayerNorm.weight': np.ones(4)})
  with pytest.raises(UserError, match=r'chexbert \(has .linear_heads.0.weight'):
    chexbert.load(tmp_path / 'bert.safetensors')
  with pytest.raises(UserError, match='holds no tokenizer'):
    chexbert.Labeller(checkpoint)
  Tokenizer.train('bpe', TEXTS, 300).save(tmp_path / 'bpe')
  with pytest.raises(UserError, match='do not belong together'):
    chexbert.Labeller(checkpoint, tmp_path / 'bpe')
  (tmp_path / 'vocab.txt').write_text('[UNK]\n[SEP]\nheart\n')
  with pytest.raises(UserError, match=r'has no \[CLS\]'):
    chexbert.Labeller(checkpoint, tmp_path)
