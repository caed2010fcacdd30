import jax
import jax.numpy as jnp
import numpy as np

from tests import small
from wmpoe.networks import refiner

SHAPE = (2, 3, 8, 8, 4)


def _inputs(seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  out, x, warped, said = (draw(*SHAPE[:-1], last) for last in (4, 4, 4, 2))
  seen = np.ones((*SHAPE[:-1], 1), np.float32)
  return jax.device_put((
      out, x, np.concatenate([warped, seen], axis=-1), said, draw(*SHAPE[:2], 6)))


NETWORK = refiner.Refiner(width=8, blocks=1)
PARAMS = jax.jit(NETWORK.init)(jax.random.key(0), *_inputs())['params']
MOVED = jax.jit(lambda tree: jax.tree.map(lambda x: x + 0.1, tree))(PARAMS)
run = jax.jit(lambda params, *inputs: NETWORK.apply({'params': params}, *inputs))


def test_a_fresh_one_changes_nothing():
  inputs = _inputs()
  np.testing.assert_array_equal(run(PARAMS, *inputs), inputs[0])
  small.differ(run(MOVED, *inputs), inputs[0])


def test_where_nothing_was_seen_the_prediction_stays():
  out, x, warped, said, condition = _inputs()
  blind = warped.at[0].set(0.0)
  found = run(MOVED, out, x, blind, said, condition)
  np.testing.assert_array_equal(found[0], out[0])
  small.differ(found[1], out[1])


def test_frames_do_not_mix():
  out, x, warped, said, condition = _inputs()
  other = run(MOVED, out, x, warped.at[:, 1].add(1.0), said, condition)
  same = run(MOVED, out, x, warped, said, condition)
  small.close(other[:, ::2], same[:, ::2])
  small.differ(other[:, 1], same[:, 1])


def test_it_can_put_the_view_in_the_place_of_the_prediction():
  """Gates alone do that, exactly: minus one of the prediction and one of the view."""
  inputs = _inputs()
  gates = dict(PARAMS['gates'], bias=jnp.repeat(jnp.array([-1.0, 0.0, 1.0, 0.0]), 4))
  small.close(run({**PARAMS, 'gates': gates}, *inputs), inputs[2][..., :4], atol=1e-6)
