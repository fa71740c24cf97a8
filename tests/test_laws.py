"""The laws of the house: who may import whom, and what no file may say."""

import ast
import pathlib
import subprocess

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
DOMAINS = ('fas', 'video', 'multimodal', 'generative')
ABOVE = ('configs', 'launch', 'benchmarks', 'tests')
CODE = (*DOMAINS, 'core', 'configs', 'launch', 'benchmarks')


def python_files(*folders: str) -> list[pathlib.Path]:
  """Every Python file of the given top-level folders, relative to the repository."""
  found = (path for folder in folders for path in (REPOSITORY / folder).rglob('*.py'))
  return sorted(path.relative_to(REPOSITORY) for path in found)


def imported(path: pathlib.Path) -> set[str]:
  """Absolute module names that a file imports, `from a.b import c` counted as a.b and a.b.c."""
  names = set()
  for node in ast.walk(ast.parse((REPOSITORY / path).read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      names.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}:{node.lineno}: import by absolute name'
      names.add(node.module)
      names.update(f'{node.module}.{alias.name}' for alias in node.names)
  return names


def forbidden(path: pathlib.Path, module: str) -> bool:
  """Whether the laws forbid the file at `path` to import `module`."""
  room, target = path.parts[0], module.split('.')
  if room == 'core':
    return target[0] in (*DOMAINS, *ABOVE)
  if room in DOMAINS:
    other_system = target[0] in DOMAINS and len(target) > 1 and tuple(target[:2]) != path.parts[:2]
    return other_system or target[0] in ABOVE
  if room == 'configs':
    return target[0] in (*DOMAINS, 'core', 'launch', 'benchmarks', 'tests')
  return False


@pytest.mark.parametrize('path', python_files('core', *DOMAINS, 'configs'), ids=str)
def test_rooms_import_only_what_the_laws_allow(path):
  broken = sorted(module for module in imported(path) if forbidden(path, module))
  assert not broken, f'{path} may not import {broken}'


def test_the_laws_can_be_broken():
  assert forbidden(pathlib.Path('core/nn/vit.py'), 'fas.fas_aug.model')
  assert forbidden(pathlib.Path('fas/fas_aug/task.py'), 'fas.identity_fas.losses')
  assert forbidden(pathlib.Path('fas/fas_aug/task.py'), 'configs.fas.fas_aug')
  assert not forbidden(pathlib.Path('fas/fas_aug/task.py'), 'fas.fas_aug.losses')
  assert not forbidden(pathlib.Path('launch/train.py'), 'core.train.loop')


@pytest.mark.parametrize('path', python_files(*CODE), ids=str)
def test_no_tensorflow_and_no_pmap(path):
  assert not {m for m in imported(path) if m.split('.')[0] == 'tensorflow'}
  tree = ast.parse((REPOSITORY / path).read_text(encoding='utf-8'))
  names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
  assert 'pmap' not in names, f'{path} uses pmap, which is in maintenance: shard with jax.jit over the mesh'


@pytest.mark.parametrize('path', python_files('core', *DOMAINS, 'launch'), ids=str)
def test_torch_is_a_reference_not_a_dependency(path):
  assert not {m for m in imported(path) if m.split('.')[0] in ('torch', 'timm', 'diffusers')}


@pytest.mark.parametrize('path', python_files(*CODE), ids=str)
def test_every_module_says_what_it_is_for(path):
  tree = ast.parse((REPOSITORY / path).read_text(encoding='utf-8'))
  assert ast.get_docstring(tree) or not tree.body, f'{path} has no module docstring'


def test_every_system_explains_itself():
  systems = [p.parent for p in python_files(*DOMAINS) if p.name == 'task.py']
  assert systems
  assert not [str(s) for s in systems if not (REPOSITORY / s / 'README.md').is_file()]


def test_no_weights_or_records_are_committed():
  listing = subprocess.run(['git', 'ls-files'], cwd=REPOSITORY, capture_output=True, text=True)
  if listing.returncode:
    pytest.skip('not a git checkout')
  heavy = ('.safetensors', '.bin', '.pt', '.ckpt', '.array_record', '.onnx', '.mp4', '.npz')
  assert not [name for name in listing.stdout.split() if name.endswith(heavy)]
