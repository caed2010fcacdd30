import jax
import pytest

from wmpoe import sharding
from wmpoe.commands import runs


def test_heads_that_do_not_divide_over_a_mesh_are_refused():
  mesh = jax.sharding.AbstractMesh((1, 1, 2, 1), sharding.AXES)
  runs.check_mesh(mesh, {'model': {'heads': 4}, 'encoder': {'features': 3}})
  with pytest.raises(ValueError, match='encoder.heads = 3 does not divide over the mesh axis tens'):
    runs.check_mesh(mesh, {'model': {'heads': 4}, 'encoder': {'heads': 3}})
