"""The code that README.md and CONTRIBUTING.md show is run as it stands there."""

import dataclasses
import pathlib
import re

import jax
import numpy as np

from wmpoe import compositions
from wmpoe import world_model
from wmpoe.data import cards
from wmpoe.data import episode

_ROOT = pathlib.Path(__file__).parents[1]


def _python(document):
  text = (_ROOT / document).read_text(encoding='utf-8')
  return re.findall(r'```python\n(.*?)```', text, flags=re.DOTALL)


def test_the_readme_snippet_runs_as_it_stands(monkeypatch):
  # Fewer inner steps: what is tested is that every line does what it says, and that it remembers.
  long_term = compositions.CARDS['long_term']
  short = {**long_term, 'writing': {**long_term['writing'], 'steps': 40}}
  monkeypatch.setitem(compositions.CARDS, 'long_term', short)
  (snippet,) = _python('README.md')
  assert len(snippet.strip().splitlines()) <= 22
  names = {}
  exec(snippet, names)
  assert names['frames'].shape == (2, 14, 32, 32, 3)
  assert names['frames'].dtype == np.uint8
  assert set(names['lean'].memories) == {'spatial'}
  # Memories have seen every card: what they imagine is close to the truth.
  then, model = names['then'], names['model']

  def error(frames):
    return np.abs(np.float32(frames) - np.float32(then.frames)).mean()

  dream = lambda *experts: names['imagine'](
      model.compose('base', *experts), names['state'], then.actions, then.poses,
      jax.random.key(1))[1]
  assert error(names['frames']) < 0.5
  assert error(dream('long_term')) < 1.0
  assert error(dream()) > 5.0


def test_the_expert_of_contributing_composes_with_the_others():
  expert_code, use = _python('CONTRIBUTING.md')
  names = {}
  exec(expert_code + use, names)
  model = dataclasses.replace(names['model'], num_steps=4)
  world = cards.CardsConfig()
  episodes = [cards.to_episode(cards.script_episode(i, world, 'test'), world) for i in range(2)]
  seen = episode.stack(episodes, stop=10)
  then = episode.stack(episodes, start=10, stop=17)
  state = world_model.WorldModel.observe(model, model.init(2), seen, jax.random.key(0))
  assert set(state.memories) == {'spatial', 'mean_frame'}
  np.testing.assert_allclose(state.memories['mean_frame'][1], 10.0)
  imagine = jax.jit(world_model.WorldModel.imagine)
  _, frames = imagine(model, state, then.actions, then.poses, jax.random.key(1))
  without = model.compose('base', 'spatial')
  _, other = imagine(without, state, then.actions, then.poses, jax.random.key(1))
  assert frames.shape == other.shape == (2, 7, 32, 32, 3)
  assert np.any(frames != other)
