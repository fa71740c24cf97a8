"""Cross-domain protocols by name: which domains a run trains on, and which one it is judged on.

MICO is leave-one-out over MSU-MFSD (M), Idiap Replay-Attack (I), CASIA-FASD (C) and OULU-NPU (O); MICY has ROSE-YOUTU
(Y) for OULU-NPU (spec section 5). All videos of every source and of the target are used.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from core.errors import UserError, nearest

LETTERS = {
  'M': 'msu_mfsd',
  'I': 'replay_attack',
  'C': 'casia_fasd',
  'O': 'oulu_npu',
  'Y': 'rose_youtu',
}
"""The field's letters."""

FAMILIES = {'MICO': 'MICO', 'MCIO': 'MICO', 'OCIM': 'MICO', 'MICY': 'MICY'}
"""Families of four leave-one-out runs, with the names they also go by."""

LIMITED = {'limited_source': ('MI->C', 'MI->O')}
"""Two sources only, the field's pair (spec section 5, from memory)."""


@dataclasses.dataclass(frozen=True)
class Protocol:
  """One run.

  Attributes:
    name: e.g. 'O&C&I->M', or 'tablet&dslr->phone' for domains without a letter.
    sources: domain names, in the name's order.
    target: domain name.
  """

  name: str
  sources: tuple[str, ...]
  target: str

  def __post_init__(self):
    if not self.sources or self.target in self.sources or len(set(self.sources)) != len(self.sources):
      raise UserError(
        f"Protocol '{self.name}': sources {list(self.sources)} and target '{self.target}' must be different domains."
      )


def make(sources: Sequence[str], target: str) -> Protocol:
  """The protocol of these domain names, named by letters where all of them have one."""
  letters = {domain: letter for letter, domain in LETTERS.items()}
  names = [*sources, target]
  if all(domain in letters for domain in names):
    names = [letters[domain] for domain in names]
  return Protocol('&'.join(names[:-1]) + '->' + names[-1], tuple(sources), target)


def leave_one_out(domains: Sequence[str]) -> list[Protocol]:
  """One protocol per target, the others in their order as sources. Needs two domains."""
  if len(domains) < 2 or len(set(domains)) != len(domains):
    raise UserError(f'Leave-one-out needs two or more different domains, got {list(domains)}.')
  return [make([d for d in domains if d != target], target) for target in domains]


def resolve(name: str, domains: Sequence[str] = ()) -> list[Protocol]:
  """The run or the runs that a name means.

  Args:
    name: a family ('MICO', 'MICY', 'limited_source', 'leave_one_out' over `domains`) or one run in any of the field's
      spellings: 'O&C&I->M', 'OCI->M', 'OCI_M', 'OCI_to_M', 'phone&tablet->laptop', 'phone+tablet_to_laptop', 'MI_C'.
    domains: names that may be used beside the five datasets' letters and names.

  Raises:
    UserError: unknown name or domain; lists what is known.
  """
  name = name.strip()
  if name == 'leave_one_out':
    return leave_one_out(domains)
  if name.upper() in FAMILIES:
    return leave_one_out([LETTERS[letter] for letter in FAMILIES[name.upper()]])
  if name in LIMITED:
    return [one for each in LIMITED[name] for one in resolve(each, domains)]
  sides = re.split(r'\s*(?:->|→|_to_)\s*', name)
  if len(sides) == 1 and re.fullmatch(r'[A-Za-z]+_[A-Za-z]', name):
    sides = name.split('_')
  if len(sides) != 2:
    known = [*FAMILIES, *LIMITED, 'leave_one_out']
    raise UserError(
      f"Unknown protocol '{name}'.{nearest(name, known)} Known: {', '.join(known)}, or one run as 'sources->target', "
      "e.g. 'OCI->M' or 'phone&tablet->laptop'."
    )
  sources, targets = (_domains(side, domains, name) for side in sides)
  if len(targets) != 1:
    raise UserError(f"Protocol '{name}' has {len(targets)} targets ({', '.join(targets)}); one is expected.")
  return [make(sources, targets[0])]


def _domains(side: str, domains: Sequence[str], name: str) -> list[str]:
  """Domain names of one side: separated by '&', '+' or ',', or letters written together."""
  parts = [part.strip() for part in re.split(r'[&+,]', side) if part.strip()]
  known = {**{d: d for d in LETTERS.values()}, **LETTERS, **{d: d for d in domains}}
  if len(parts) == 1 and parts[0] not in known and all(letter in LETTERS for letter in parts[0]):
    parts = list(parts[0])
  for part in parts:
    if part not in known:
      raise UserError(
        f"Protocol '{name}': unknown domain '{part}'.{nearest(part, known)} Known: {', '.join(sorted(known))}."
      )
  return [known[part] for part in parts]
