import json
import math

import numpy as np
import pytest

from wmpoe.data.sources import tables


def _csv(tmp_path, text):
  path = tmp_path / 'a.csv'
  path.write_text(text)
  return path


def test_discrete_actions_with_planar_poses(tmp_path):
  table = tables.read(_csv(
      tmp_path, '\ufeffaction,x,y,heading_degrees,note\nup,1,2,90,a\ngo,3,4,0,b\n'))
  assert (table.labels, table.length, table.pose_kind) == (('up', 'go'), 2, 'planar')
  np.testing.assert_allclose(table.poses, [[1, 2, math.pi / 2], [3, 4, 0]], rtol=1e-6)
  assert table.pose_names == ('x', 'y', 'heading')


def test_continuous_actions_with_vectors_in_json(tmp_path):
  rows = [{'action.throttle': 0.5, 'action.wheel': -1, 'pose_a': i} for i in range(3)]
  for value in (rows, {k: [row[k] for row in rows] for k in rows[0]}):
    (tmp_path / 'a.json').write_text(json.dumps(value))
    table = tables.read(tmp_path / 'a.json')
    assert (table.action_names, table.pose_names, table.pose_kind) == (
        ('throttle', 'wheel'), ('a',), 'vector')
    np.testing.assert_allclose(table.actions, [[0.5, -1]] * 3)


def test_names_of_discrete_actions(tmp_path):
  read = lambda text: tables.read(_csv(tmp_path, text))
  assert tables.action_names([read('action\n3\n0\n')]) == ('0', '1', '2', '3')
  assert tables.action_names([read('action\nup\n'), read('action\ndown\n')]) == ('down', 'up')
  with pytest.raises(ValueError, match='Actions from -1 to 5000'):
    tables.action_names([read('action\n-1\n5000\n')])


@pytest.mark.parametrize(('text', 'message'), [
    ('', 'an empty table'),
    ('action\n', 'expected one row per frame'),
    ('action,action\n1,2\n', 'repeat'),
    ('action,x\n1\n', 'frame 0 has 1 values; expected 2'),
    ('speed\n1\n', r"the columns are \['speed'\]; expected either action"),
    ('action,action_x\n1,2\n', 'expected either action .* or action_NAME'),
    ('action_x\n1\nfast\n', "column 'action_x' is 'fast' in frame 1; expected a finite number"),
    ('action_x\nnan\n', "column 'action_x' is 'nan' in frame 0"),
    ('action,x,y\n1,2,3\n', 'no heading'),
    ('action\n1\n""\n', "column 'action' is '' in frame 1"),
])
def test_faults_are_told_by_file_column_and_frame(tmp_path, text, message):
  with pytest.raises(ValueError, match=rf'a\.csv: .*{message}'):
    tables.read(_csv(tmp_path, text))


@pytest.mark.parametrize(('value', 'message'), [
    ('{', 'Expecting'), ('[' * 100_000, 'a.json: '), ('3', 'expected a list of rows'),
    ('[{"action": 1}, {"b": 1}]', 'frame 1 is no object with the keys of the first'),
    ('{"action": [1, true]}', 'in frame 1; expected a name or a whole number'),
    ('{"action_a": [1, 2], "x": [1]}', 'columns of lengths'),
    ('{"action_a": [1e999]}', "'inf' in frame 0"),
])
def test_json_is_no_better(tmp_path, value, message):
  (tmp_path / 'a.json').write_text(value)
  with pytest.raises(ValueError, match=message):
    tables.read(tmp_path / 'a.json')
