"""Tests of the repository itself: what no linter looks at."""

import ast
import importlib.util
import pathlib
import re
import subprocess

import pytest

import wmpoe

_ROOT = pathlib.Path(__file__).parents[1]
_SOURCES = sorted((_ROOT / 'wmpoe').rglob('*.py'))


def _ours(pattern='*'):
  """Files that are committed, or would be by `git add .`."""
  command = ['git', 'ls-files', '--cached', '--others', '--exclude-standard', '--', pattern]
  listed = subprocess.run(command, cwd=_ROOT, check=False, capture_output=True, text=True)
  if listed.returncode:
    pytest.skip(f'only in a git checkout: {listed.stderr}')
  return [path for path in map(_ROOT.joinpath, listed.stdout.splitlines()) if path.is_file()]


def test_files_can_be_read_in_one_sitting():
  lengths = {path: len(path.read_text(encoding='utf-8').splitlines()) for path in _SOURCES}
  assert len(lengths) > 1
  assert {str(path): n for path, n in lengths.items() if n > 400} == {}


def test_no_text_names_the_place_it_was_written_in():
  # Put together here, so that this file does not name them either.
  places = ['/' + 'work/', '/' + 'root/', 'pypi' + '.org', 'python' + 'hosted', 'npmjs' + '.']
  found = []
  for path in _ours():
    content = path.read_bytes()
    if b'\0' not in content:  # Binary files have one early on.
      found += [f'{path}: {place}' for place in places if place.encode() in content]
  assert found == []


def test_modules_are_imported_not_symbols():
  found = []
  for path in _SOURCES:
    # A package's front door may present symbols of its rooms.
    if path.name == '__init__.py':
      continue
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
      if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'wmpoe':
        for name in node.names:
          if _find_spec(f'{node.module}.{name.name}') is None:
            found.append(f'{path}:{node.lineno}: from {node.module} import {name.name}')
  assert found == []


def _find_spec(name):
  try:
    return importlib.util.find_spec(name)
  except ModuleNotFoundError:  # Its parent is a module, not a package.
    return None


def test_tests_mirror_the_library():
  """Every test file stands where the file or folder that it tests stands in wmpoe/."""
  stray = []
  for path in sorted((_ROOT / 'tests').rglob('*_test.py')):
    place = path.relative_to(_ROOT / 'tests')
    if not (_ROOT / 'wmpoe' / place.parent).is_dir():
      stray.append(str(place))
  assert stray == []


def test_the_version_is_told_once():
  assert f'version: {wmpoe.__version__}\n' in (_ROOT / 'CITATION.cff').read_text(encoding='utf-8')
  assert '__version__' in (_ROOT / 'setup.py').read_text(encoding='utf-8')


@pytest.mark.parametrize('document', ['README.md', 'CONTRIBUTING.md'])
def test_documents_name_what_exists(document):
  text = (_ROOT / document).read_text(encoding='utf-8')
  makefile = (_ROOT / 'Makefile').read_text(encoding='utf-8')
  targets = set(re.findall(r'^([\w-]+):', makefile, re.MULTILINE))
  commands = re.findall(r'(?:`|^|\$ )make ([a-z][\w-]*)', text, re.MULTILINE)
  assert commands
  assert set(commands) <= targets
  paths = re.findall(r'\b((?:configs|benchmarks|tests|results|docs|wmpoe)/[\w./-]*\w)', text)
  # A word with stars or capitals in a path stands for many; those are not caught by the pattern.
  assert [path for path in paths if not (_ROOT / path).exists()] == []
