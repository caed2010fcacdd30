"""The notebooks as they are committed; `make colab` runs them."""

import ast
import importlib
import json
import pathlib

import pytest

_FOLDER = pathlib.Path(__file__).parents[1] / 'colab'
_NOTEBOOKS = sorted(_FOLDER.glob('*.ipynb'))


@pytest.fixture(params=_NOTEBOOKS, ids=lambda path: path.name)
def notebook(request):
  return request.param.name, json.loads(request.param.read_text(encoding='utf-8'))


def _source(cell):
  return ''.join(cell['source'])


def test_there_are_some():
  assert _NOTEBOOKS


def test_outputs_are_stripped(notebook):
  for cell in notebook[1]['cells']:
    assert cell.get('outputs', []) == [] and cell.get('execution_count') is None


def test_it_opens_in_colab_and_installs_first(notebook):
  name, content = notebook
  first, second = content['cells'][:2]
  assert first['cell_type'] == 'markdown' and f'/blob/main/colab/{name})' in _source(first)
  assert second['cell_type'] == 'code' and "'pip', 'install'" in _source(second)


def test_what_it_uses_exists(notebook):
  code = [_source(cell) for cell in notebook[1]['cells'] if cell['cell_type'] == 'code']
  tree = ast.parse('\n'.join(code))
  imported = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module.split('.')[0] == 'wmpoe':
      for name in node.names:
        imported[name.name] = importlib.import_module(f'{node.module}.{name.name}')
  assert imported
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and (
        node.value.id in imported):
      assert hasattr(imported[node.value.id], node.attr), f'{node.value.id}.{node.attr}'


def test_links_lead_to_notebooks_that_exist(notebook):
  for cell in notebook[1]['cells']:
    for part in _source(cell).split('](')[1:]:
      link = part.partition(')')[0]
      assert link.startswith('https://') or (_FOLDER / link).is_file(), link
