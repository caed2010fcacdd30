"""The notebooks, without running them, which `make colab` does."""

import ast
import importlib
import json
import pathlib

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / 'colab').glob('*.ipynb'))


def _cells(path, kind):
  notebook = json.loads(path.read_text(encoding='utf-8'))
  return [cell for cell in notebook['cells'] if cell['cell_type'] == kind]


def test_there_are_five():
  assert [path.name[:2] for path in NOTEBOOKS] == ['00', '01', '02', '03', '04']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stripped_opens_in_colab_and_installs_first(path):
  code = _cells(path, 'code')
  assert all(cell['outputs'] == [] and cell['execution_count'] is None for cell in code)
  assert f'/blob/main/colab/{path.name})' in ''.join(_cells(path, 'markdown')[0]['source'])
  assert 'pip' in ''.join(code[0]['source']) and 'wmpoe[' in ''.join(code[0]['source'])


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_what_is_there(path):
  """Every name it takes from a module of wmpoe exists: a rename is seen here, not by a reader."""
  tree = ast.parse('\n'.join(''.join(cell['source']) for cell in _cells(path, 'code')))
  modules = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module.split('.')[0] == 'wmpoe':
      for name in node.names:
        modules[name.asname or name.name] = importlib.import_module(f'{node.module}.{name.name}')
  assert modules
  missing = [
      f'{node.value.id}.{node.attr}' for node in ast.walk(tree)
      if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
      and node.value.id in modules and not hasattr(modules[node.value.id], node.attr)]
  assert missing == []
