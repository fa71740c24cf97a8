"""Protocols by every name that the field gives them."""

import pytest

from core.data.antispoofing import protocols
from core.errors import UserError

M, I, C, O, Y = 'msu_mfsd', 'replay_attack', 'casia_fasd', 'oulu_npu', 'rose_youtu'  # noqa: E741


def test_families():
  runs = protocols.resolve('MICO')
  assert [run.name for run in runs] == ['I&C&O->M', 'M&C&O->I', 'M&I&O->C', 'M&I&C->O']
  assert runs[0] == protocols.Protocol('I&C&O->M', (I, C, O), M)
  micy = protocols.resolve('MICY')
  assert [run.target for run in micy] == [M, I, C, Y] and all(O not in run.sources for run in micy)
  assert [run.name for run in protocols.resolve('limited_source')] == ['M&I->C', 'M&I->O']


@pytest.mark.parametrize('name', ['OCI_M', 'O&C&I->M', 'OCI->M', ' OCI -> M ', 'OCI_to_M', 'O+C+I->M', 'O,C,I→M'])
def test_one_run_in_every_spelling(name):
  assert protocols.resolve(name) == [protocols.Protocol('O&C&I->M', (O, C, I), M)]


def test_limited_source_by_name():
  assert protocols.resolve('MI_C')[0].sources == (M, I)
  assert protocols.resolve('msu_mfsd&replay_attack->oulu_npu')[0].name == 'M&I->O'


def test_own_domains():
  domains = ('laptop', 'phone', 'tablet', 'dslr')
  runs = protocols.resolve('leave_one_out', domains)
  assert [run.target for run in runs] == list(domains)
  assert runs[1].name == 'laptop&tablet&dslr->phone'
  for run in runs:  # names lead back to their runs
    assert protocols.resolve(run.name, domains) == [run]
  assert protocols.resolve('phone+tablet_to_laptop', domains)[0].sources == ('phone', 'tablet')


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('MIC0', "Did you mean 'MIC"),
    ('OCI->X', "unknown domain 'X'"),
    ('phone->laptop', "unknown domain 'phone'"),
    ('OCM->M', 'must be different'),
    ('OO->M', 'must be different'),
    ('OC->MI', '2 targets'),
    ('->M', 'must be different'),
    ('leave_one_out', 'two or more'),
  ],
)
def test_mistakes_are_named(name, message):
  with pytest.raises(UserError, match=message):
    protocols.resolve(name)
