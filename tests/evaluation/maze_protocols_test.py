"""The protocols of Memory Maze on small networks: what must hold whatever they learnt."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from tests import small
from wmpoe import world_model
from wmpoe.data import episode
from wmpoe.evaluation import arms
from wmpoe.evaluation import kept as kept_lib
from wmpoe.evaluation import maze
from wmpoe.evaluation import maze_arms
from wmpoe.evaluation import maze_protocols
from wmpoe.evaluation import maze_study
from wmpoe.evaluation import results
from wmpoe.experts import base
from wmpoe.experts import expert
from wmpoe.experts import history_guidance
from wmpoe.experts import long_term
from wmpoe.experts import recurrent
from wmpoe.experts import short_term
from wmpoe.networks import ssm

DIMS = {'action_dim': 3, 'pose_dim': 3}
SETTING = {
    'history': 8, 'starts': (8, 10), 'replays': (4, 6), 'chunks': 1, 'contexts': (4, 8),
    'ranks': (1, 2, 'full'), 'rank_histories': (8,),
    'full': {'steps': 2, 'optimizer': {'name': 'adam', 'learning_rate': 1e-3}},
    'first': 4, 'rounds': 3, 'steps_per_round': 1}


class Stages:
  """Progress that counts."""

  def __init__(self, count):
    self.count, self.seen = count, set()

  def __call__(self, text, share):
    if share == 1.0:
      self.seen.add(text)

  def done(self):
    pass


@pytest.fixture(scope='module')
def study():
  described = lambda **kw: small.model(pose_kind='vector', **kw)
  draw = lambda m, seed: small.random_tree(
      jax.eval_shape(lambda key: m.init(key, **DIMS), jax.random.key(0)), seed)
  net, longer = described(), described(context=4)
  weights = draw(net, 0)
  memories = {
      'short_term': short_term.ShortTerm(params=draw(longer, 1), model=longer, **DIMS),
      'long_term': long_term.create(
          jax.random.key(0), net, weights, spec=small.SPEC, optimizer=optax.adam(0.05),
          writing=dataclasses.replace(small.WRITING, capacity=16), **DIMS)}
  model = world_model.WorldModel(
      base=base.Base(params=weights, model=net), memories=memories, num_steps=2, chunk=2, **DIMS)
  rng = np.random.default_rng(0)
  episodes = [
      episode.Episode(
          frames=rng.integers(256, size=(14, *small.FRAME), dtype=np.uint8),
          actions=np.eye(3, dtype=np.float32)[rng.integers(3, size=14)],
          poses=rng.uniform(0, 2, size=(14, 3)).astype(np.float32), meta={'name': str(i)})
      for i in range(2)]
  return maze_study.Study(
      model=model, episodes=episodes, latents=[e.frames for e in episodes], setting=SETTING,
      seeds=(0, 1), measures=maze_arms.measures(['psnr']), progress=Stages)


def only(study, *names):
  return dataclasses.replace(study, model=study.model.compose('base', *names))


def run(protocol, study):
  body, _ = maze_protocols.PROTOCOLS[protocol](study)
  body.pop('about', None)
  meta = results.meta('test', {}, seeds=[0, 1], seconds=1.0)
  return results.make(meta, **body)  # checked against the one format


def psnr(out, arm):
  return out['arms'][arm]['psnr']['mean']


def baselines(model):
  network = ssm.SSM(
      width=16, depth=1, heads=2, patch=8, frame_shape=small.FRAME, mlp_ratio=2, context=4,
      pose_kind='vector', state=2)
  recur = expert.Model(network=network, schedule=small.SCHEDULE, anchor='first')
  longer = model.memories['short_term']
  return {
      'ssm': recurrent.Recurrent(
          params=small.random_tree(
              jax.eval_shape(lambda key: recur.init(key, **DIMS), jax.random.key(0))),
          model=recur, baseline='base', pose_dim=3),
      'history_guidance_t': history_guidance.HistoryGuidance(
          params=longer.params, model=longer.model, windows=((4, 0), (2, 0)), strengths=(1.0, 0.5),
          **DIMS)}


def test_table1_has_every_arm_and_control(study):
  chosen = only(study, 'short_term')
  out = run('table1', dataclasses.replace(chosen, baselines=baselines(study.model)))
  assert list(out['arms']) == [
      'base', 'short_term', 'sliding', 'naive_product', 'ssm', 'history_guidance_t', 'copy_last',
      'copy_mean', 'copy_pose', 'copy_turned']
  assert set(out['controls']) == {'other_episode', 'shuffled_history'}
  shown = [psnr(out, name) for name in out['arms']]
  assert len(set(shown)) == len(shown), 'every arm imagines something else'
  assert out['arms']['short_term']['memory_bytes']['mean'] > 0
  assert out['arms']['base']['memory_bytes']['mean'] == 0
  # A state of constant size against a window of frames.
  assert out['arms']['ssm']['memory_bytes']['mean'] == 4 * (small.TOKENS * 16 * 2 + 3 + 1)


@pytest.mark.parametrize('protocol', ['revisit', 'replay', 'contrast', 'context', 'streaming'])
def test_arms_can_be_chosen(study, protocol):
  asked = dataclasses.replace(only(study, 'short_term'), seeds=(0,), setting={
      **SETTING, 'starts': (8,), 'replays': (4,), 'contexts': (8,), 'rounds': 1},
      only=('other_episode',))
  out = run(protocol, asked)
  found = {name.removesuffix('_8').removesuffix('_true').removesuffix('_imagined')
           for name in out['arms'] if not name.startswith('copy')}
  assert found == {'base'}
  assert {name.removesuffix('_8') for name in out['controls']} == {'other_episode'}
  with pytest.raises(ValueError, match='--arms names al, it; expected some of base, '):
    run(protocol, dataclasses.replace(asked, only=('al', 'short_term', 'it')))


def test_poses_are_estimated_only_for_arms_that_ask_for_them(study, monkeypatch):
  monkeypatch.setattr(maze, 'with_odometry', None)
  monkeypatch.setattr(maze, 'following', lambda *_: {})
  out = run('table1', dataclasses.replace(
      only(study), seeds=(0,), odometry=('a network', 'its parameters'), only=('base',)))
  assert 'base' in out['arms'] and 'curves' not in out


def test_ranks_are_not_arms(study):
  with pytest.raises(ValueError, match=r'no --arms to choose from: set protocol\.ranks'):
    run('rank', dataclasses.replace(study, only=('base',)))


def test_a_few_episodes_at_a_time_imagine_the_same(study):
  chosen = only(study)
  three = dataclasses.replace(
      chosen, episodes=[*chosen.episodes, chosen.episodes[0]],
      latents=[*chosen.latents, chosen.latents[0]])
  task = three.problem(8, (8,))
  state = three.model.init(3)
  at_once, in_twos = (
      maze_arms.imagine(
          three.model, task, arms.Arm(at_once=size), state.memories, jax.random.key(0), 0)[0]
      for size in (0, 2))
  small.close(at_once.astype(float), in_twos.astype(float), atol=1.0)
  small.differ(at_once[0], at_once[1])


def test_replay_asks_for_what_was_remembered(study):
  chosen = only(study, 'short_term')
  setting = lambda **changes: dataclasses.replace(
      chosen, seeds=(0,), setting={**SETTING, **changes})
  replayed = run('replay', setting(replays=(4,)))
  assert list(replayed['arms']) == ['base', 'short_term']
  assert list(replayed['controls']) == ['other_episode']
  # The window of a short-term memory goes back to the frames before those that are asked for.
  continued = run('table1', setting(history=4, starts=(4,)))
  assert psnr(replayed, 'short_term') == pytest.approx(psnr(continued, 'short_term'), abs=1e-4)
  assert psnr(replayed, 'base') != psnr(replayed, 'short_term')
  for outside in (3,), (7,):
    with pytest.raises(ValueError, match='expected them inside it, after the 4 frames'):
      run('replay', setting(replays=outside))


def test_contrast_leaves_the_base_and_changes_the_rest(study):
  out = run('contrast', only(study, 'short_term'))
  assert psnr(out, 'base') != psnr(out, 'base_contrast')
  assert psnr(out, 'short_term') != psnr(out, 'short_term_off')
  assert set(out['controls']) == {'other_episode', 'shuffled_history'}
  assert 'copy_pose' in out['arms']


def test_context_asks_for_the_same_frames_after_every_history(study):
  out = run('context', only(study, 'long_term'))
  # The base sees its own context only: the same frames, whatever the history.
  assert psnr(out, 'base_4') == pytest.approx(psnr(out, 'base_8'), abs=1e-6)
  assert psnr(out, 'long_term_4') != psnr(out, 'long_term_8')
  assert out['curves'][0]['series']['base']['x'] == [4, 8]
  assert set(out['controls']) == {
      f'{kind}_{length}' for kind in ('other_episode', 'shuffled_history') for length in (4, 8)}
  # A mean of more frames is another picture.
  assert psnr(out, 'copy_mean_4') != psnr(out, 'copy_mean_8')


def test_rank_writes_less_into_less(study):
  out = run('rank', study)
  ranked = {'rank_1_history_8', 'rank_2_history_8', 'rank_full_history_8'}
  assert {name for name in out['arms'] if 'copy' not in name} == {'base', *ranked}
  assert set(out['controls']) == {
      f'{kind}_rank_{value}' for kind in ('other_episode', 'shuffled_history')
      for value in SETTING['ranks']}
  size = lambda name: out['arms'][name]['memory_bytes']['mean']
  assert size('rank_2_history_8') == pytest.approx(2 * size('rank_1_history_8'))
  # Alone, as in every other protocol, it has the weight of a memory alone.
  silent = dataclasses.replace(study, model=dataclasses.replace(
      study.model, fewer=((('long_term',), (('long_term', 0.0),)),)))
  found = run('rank', silent)['arms']
  assert found['rank_2_history_8']['psnr']['mean'] == pytest.approx(found['base']['psnr']['mean'])
  assert psnr(out, 'rank_2_history_8') != psnr(out, 'base')
  assert len({psnr(out, name) for name in ranked}) == 3
  with pytest.raises(ValueError, match='needs a long-term memory'):
    run('rank', only(study, 'short_term'))


@pytest.mark.parametrize('bad', [0, 2.0, 'whole'])
def test_ranks_are_checked_before_anything_is_measured(study, monkeypatch, bad):
  monkeypatch.setattr(maze_study, 'run', None)
  with pytest.raises(ValueError, match="expected 'full' or whole numbers from 1"):
    run('rank', dataclasses.replace(study, setting={**SETTING, 'ranks': (8, bad)}))


@pytest.mark.parametrize('protocol', ['context', 'streaming'])
def test_what_is_kept_is_not_measured_again(study, tmp_path, monkeypatch, protocol):
  kept = kept_lib.Kept(tmp_path / 'parts')
  chosen = dataclasses.replace(only(study, 'short_term'), kept=kept)
  first = run(protocol, chosen)
  assert kept.parts() == (4 if protocol == 'streaming' else 2 * len(SETTING['contexts']))
  monkeypatch.setattr(maze_arms, 'score', None)
  assert run(protocol, chosen)['arms'] == first['arms']


def test_table1_is_the_first_place_of_revisit(study, tmp_path, monkeypatch):
  kept = kept_lib.Kept(tmp_path / 'parts')
  chosen = dataclasses.replace(only(study, 'short_term'), kept=kept)
  alone = run('table1', only(study, 'short_term'))
  run('revisit', chosen)
  assert kept.parts() == 4  # two seeds from two places
  monkeypatch.setattr(maze_arms, 'score', None)
  for name, arm in run('table1', chosen)['arms'].items():
    assert arm['psnr'] == alone['arms'][name]['psnr'], name


def test_streaming_is_compared_with_the_base_round_by_round(study):
  chosen = dataclasses.replace(
      only(study, 'short_term'), seeds=(0,),
      measures={'lpips_vgg': lambda shown, true: np.abs(
          shown.astype(np.float32) - true).mean((-3, -2, -1)) + 1})
  out = run('streaming', chosen)
  values, cuts = (curve['series'] for curve in out['curves'])
  assert set(values) - set(cuts) == {'base_true', 'base_imagined'}
  for appended in 'true', 'imagined':
    np.testing.assert_allclose(
        cuts[f'short_term_{appended}']['mean'],
        1 - np.array(values[f'short_term_{appended}']['mean']) / values[f'base_{appended}']['mean'])


def test_streaming_parts_ways_after_the_first_round(study):
  out = run('streaming', only(study, 'long_term'))
  series = out['curves'][0]['series']
  assert set(series) == {'other_episode', 'shuffled_history', *(
      f'{name}_{appended}' for name in ('base', 'long_term') for appended in ('true', 'imagined'))}
  # In random order it is another memory, of which the base's context does not know.
  assert out['controls']['shuffled_history']['psnr'] != out['arms']['long_term_true']['psnr']
  for name in ('base', 'long_term'):
    true, imagined = (series[f'{name}_{which}']['mean'] for which in ('true', 'imagined'))
    assert len(true) == 3
    assert true[0] == pytest.approx(imagined[0]) and true[1:] != pytest.approx(imagined[1:])
