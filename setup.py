"""Verax: trustworthy vision in JAX."""

import pathlib

from setuptools import find_packages, setup

# Lower bounds are the versions that CI has really run; see CONTRIBUTING.md for how they are raised.
REQUIRES = [
  'jax>=0.10.2',
  'flax>=0.12.8',
  'optax>=0.2.8',
  'orbax-checkpoint>=0.12.8',
  'grain>=0.2.18',
  'array_record>=0.8.6',
  'tensorflow-datasets>=4.9.10',
  'importlib_resources>=6.4',  # tensorflow-datasets imports it without asking for it
  'ml-collections>=1.1.0',
  'transformers>=5.23.0',
  'safetensors>=0.8.0',
  'einops>=0.8.2',
  'chex>=0.1.92',
  'clu>=0.0.12',
  'numpy>=2.4',
  'scipy>=1.17',
  'scikit-learn>=1.9',
  'matplotlib>=3.11',
  'pillow>=13.0',
  'opencv-python-headless>=4.14,<5',  # OpenCV 5 carries no Haar cascades
  'av>=18.1',
  'lmdb>=3.0',  # feature stores of action anticipation
  'sentencepiece>=0.2.3',  # tokenizers of LLaMA that come as tokenizer.model
  'pycocoevalcap>=1.2',
  'tensorboardX>=2.6.5',
  'tqdm>=4.70',
]

EXTRAS = {
  'test': ['pytest>=9.2', 'pytest-timeout>=2.4', 'hypothesis>=6.170', 'ruff>=0.17', 'pyyaml>=6'],
  # The parity references. torch is pinned to the version with a CPU build: a newer one may bring gigabytes of CUDA.
  'reference': ['torch==2.13.0', 'peft>=0.21', 'diffusers>=0.42', 'scikit-image>=0.25', 'pytorch-metric-learning>=2.9'],
  'gpu': ['jax[cuda13]>=0.10.2'],
  'tpu': ['jax[tpu]>=0.10.2'],
  'notebooks': ['nbformat>=5.10', 'nbclient>=0.10', 'ipykernel>=7'],
}

setup(
  name='verax',
  version='0.1.0',
  description='Trustworthy vision in JAX: telling the real from the faked, one small Flax codebase.',
  long_description=pathlib.Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=find_packages(include=['core*', 'fas*', 'video*', 'multimodal*', 'generative*', 'configs*', 'launch*']),
  package_data={'launch': ['slurm/*', 'tpu/*', 'kubernetes/*']},
  install_requires=REQUIRES,
  extras_require=EXTRAS,
)
