"""Memory Maze from frames to a result, through the commands, on one bundled episode."""

import pathlib

import jax
import numpy as np
import pytest

from wmpoe import compositions
from wmpoe import packaged
from wmpoe import zoo
from wmpoe.data import latents
from wmpoe.data import maze_geometry
from wmpoe.data import memory_maze
from wmpoe.evaluation import results

CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'memory_maze.py'
EPISODE = pathlib.Path(__file__).parents[1] / 'data' / 'tiny_maze.npz'
TRAIN = ['--config.train.batch_size=2', '--config.train.steps=2', '--config.train.log_every=1']
MODEL = ['--config.model.width=16', '--config.model.depth=1', '--config.model.heads=1',
         '--config.model.target=2']

SPATIAL = ['--config.encoder.width=8', '--config.encoder.heads=1', '--config.encoder.depth=1',
           '--config.retrieval.count=2', '--config.points.depth=depth.npz',
           '--config.points.count=2']


def config(variant=''):
  return f'--config={CONFIG}:{variant}' if variant else f'--config={CONFIG}'


@pytest.fixture
def source(tmp_path):
  folder = tmp_path / 'episodes'
  folder.mkdir()
  known = memory_maze.load(EPISODE)
  with np.errstate(divide='ignore'):
    depth = 1 / maze_geometry.inverse_depth(
        known.layout, known.poses, 64, memory_maze.half_view(border=0))
  for name in ('first', 'second'):
    with np.load(EPISODE) as fields:
      np.savez(folder / f'{name}.npz', **fields, depth=depth.astype(np.float16))
  (folder / 'broken.npz').write_bytes(b'no zip')
  return folder


@pytest.fixture
def autoencoder(wmpoe, source):
  done = wmpoe(
      'train', config('autoencoder'), *TRAIN, '--workdir=runs/autoencoder',
      f'--config.data.folder={source}', f'--config.data.validation={source}',
      '--config.autoencoder.widths=(8, 8)', '--config.autoencoder.depth=(1, 1)',
      '--config.objective.perceptual_weight=0.0', '--package=autoencoder.npz')
  assert done.code == 0, done.err
  return 'autoencoder.npz'


@pytest.fixture
def cache(wmpoe, source, autoencoder):
  done = wmpoe('encode', config(), f'--config.autoencoder={autoencoder}', f'--source={source}',
               '--workdir=latents')
  assert done.code == 0, done.err
  assert 'broken.npz' in done.err and 'bad files left out: 1' in done.err
  assert 'wrote the latents of 2 episodes' in done.out and 'dB' in done.out
  return 'latents'


def _train(wmpoe, variant, cache, *flags, model=MODEL):
  return wmpoe('train', config(variant), *TRAIN, *model, f'--config.data.folder={cache}',
               f'--config.data.validation={cache}', '--config.autoencoder=autoencoder.npz',
               f'--workdir=runs/{variant}', f'--package={variant}.npz', *flags)


def test_the_whole_way(wmpoe, source, cache, tmp_path, monkeypatch):
  card = packaged.card(tmp_path / 'autoencoder.npz')
  assert card['result']['validation_psnr'] > 0 and 'mse' not in card['result']
  found = latents.read(
      cache, encoder=zoo.encoder_hash(zoo.load_latent_space('autoencoder.npz')[0]))
  assert [item.meta['name'] for item in found] == ['first', 'second']
  assert found[0].frames.shape[1:] == (16, 16, 4)
  # The statistics standardise the latents they were taken from (every tenth frame).
  assert np.abs(np.mean(found[0].frames.astype(np.float32), axis=(0, 1, 2))).max() < 0.6

  done = _train(wmpoe, 'depth', cache, '--config.depth.width=8', '--config.depth.blocks=1',
                model=[])
  assert done.code == 0, done.err
  done = _train(wmpoe, 'cpu_spatial', cache, *SPATIAL)
  assert done.code == 0, done.err
  card = packaged.card(tmp_path / 'cpu_spatial.npz')
  assert card['config']['depth_sha256'] == packaged.card(tmp_path / 'depth.npz')['sha256']
  assert 'configs/memory_maze.py:cpu_spatial --config.train.batch_size=2' in card['command']
  done = _train(wmpoe, 'cpu_ssm', cache, '--config.init_from=cpu_spatial.npz',
                '--config.model.context=5')
  assert done.code == 0, done.err

  done = _train(wmpoe, 'odometry', cache, model=[])
  assert done.code == 0, done.err

  done = wmpoe(
      'eval', config(), '--experts=spatial=cpu_spatial.npz',
      '--config.autoencoder=autoencoder.npz', f'--source={source}', '--protocol=revisit,table1',
      '--episodes=2', '--seeds=1', '--metrics=psnr,ssim', '--workdir=there',
      # Each arm is compiled; tests of the protocols have all of them.
      '--arms=spatial,short_term+spatial,all,spatial_odometry,spatial_depth,ssm,other_episode,'
      'shuffled_history',
      '--config.protocol.history=8', '--config.protocol.starts=(8, 10)',
      '--config.protocol.chunks=1', '--config.protocol.odometry=odometry.npz',
      '--config.compose.num_steps=2', '--config.protocol.baselines.ssm=cpu_ssm.npz',
      '--config.compose.long_term.writing.steps=1', '--config.compose.long_term.writing.target=2',
      '--config.compose.long_term.writing.capacity=16', '--config.compose.long_term.lora.rank=2')
  assert done.code == 0, done.err
  out = results.read(tmp_path / 'there' / 'revisit.json')
  assert list(out['arms']) == [
      'base', 'spatial', 'short_term+spatial', 'all', 'spatial_odometry', 'spatial_depth', 'ssm',
      'copy_last', 'copy_mean', 'copy_pose', 'copy_turned', 'copy_warped']
  assert list(out['controls']) == ['other_episode', 'shuffled_history']
  arm = out['arms']['spatial']
  assert {'psnr', 'ssim', 'psnr_minus_base', 'write_ms_per_frame'} <= set(arm)
  assert arm['psnr']['n'] == 2 and 'psnr_minus_base' not in out['arms']['base']
  assert out['meta']['config']['poses'].startswith('true')
  assert 'left out for lack of matching weights: sliding, full, forcing, absolute.' in done.err
  assert out['meta']['config']['left_out'] == ['sliding', 'full', 'forcing', 'absolute']
  budget = out['meta']['config']['training']['ssm']
  assert budget['steps'] == 2 and budget['train_flops'] > 1e6 and budget['train_seconds'] > 0
  # What an arm's networks, and those they were forked from, took to train; each once.
  took = {name: packaged.card(f'{name}.npz')['train_flops'] / 1e12
          for name in ('cpu_spatial', 'depth', 'cpu_ssm', 'odometry')}
  spatial = took['cpu_spatial'] + took['depth']
  for name, expected in {
      'base': took['cpu_spatial'], 'all': spatial,
      'spatial_odometry': spatial + took['odometry'],
      'ssm': took['cpu_spatial'] + took['cpu_ssm']}.items():
    assert out['arms'][name]['train_tflop']['mean'] == pytest.approx(expected), name
  assert 'train_tflop' not in out['arms']['copy_last']
  cost = lambda name: out['arms'][name]['write_ms_per_frame']['mean']
  assert cost('spatial_odometry') > cost('spatial'), 'to find out where one is takes time, too'
  assert (tmp_path / 'there' / 'revisit.html').stat().st_size > 10_000
  assert out['curves'][0]['title'] == 'Drift of the odometry, cells'
  # The place that both protocols share is imagined once.
  assert done.err.count('from frame 8, imagining shuffled_history') == 1
  first = results.read(tmp_path / 'there' / 'table1.json')
  assert 'psnr_revisited' not in first['arms']['all'] and first['meta']['seconds'] > 0
  assert list(first['arms']) == list(out['arms'])
  assert sorted(p.suffix for p in (tmp_path / 'there').iterdir()) == ['.html'] * 2 + ['.json'] * 2

  experts = {'spatial': (lambda tree, card: (tree, card['config']))(
      *zoo.load_expert('cpu_spatial.npz'))}
  latent_space, _ = zoo.load_latent_space('autoencoder.npz')
  tiny = zoo.build(
      experts, {**compositions.MEMORY_MAZE, 'num_steps': 2, 'long_term': None}, latent_space)
  monkeypatch.setattr(zoo, 'load', lambda name, compose: tiny)
  done = wmpoe('demo', config(), '--episodes=2', '--workdir=demo', '--config.protocol.history=8',
               '--config.protocol.starts=(8,)', '--config.protocol.chunks=1')
  assert done.code == 0, done.err
  out = results.read(tmp_path / 'demo' / 'results.json')
  assert out['arms']['spatial']['psnr']['n'] == 2 and 'copy_turned' in out['arms']
  assert (tmp_path / 'demo' / 'episode.gif').read_bytes().startswith(b'GIF89a')


def test_strict_stops_at_a_bad_episode(wmpoe, source, autoencoder):
  flags = [f'--config.autoencoder={autoencoder}', '--strict']
  for command in (
      ['train', config('autoencoder'), *TRAIN, '--workdir=runs/strict', '--strict',
       f'--config.data.folder={source}', f'--config.data.validation={source}',
       '--config.objective.perceptual_weight=0.0'],
      ['eval', config(), f'--source={source}', *flags]):
    done = wmpoe(*command)
    assert done.code == 2 and 'broken.npz' in done.err, command[0]
    assert 'left out' not in done.err, 'it went on without the file'


def test_a_cache_of_another_autoencoder_is_refused(wmpoe, cache, tmp_path):
  tree, card = zoo.load_expert('autoencoder.npz')
  packaged.save('autoencoder.npz', {**tree, 'mean': tree['mean'] + 1}, card)
  done = _train(wmpoe, 'cpu_spatial', cache)
  assert done.code == 2
  assert 'stale cache' in done.err and 'Encode the episodes again' in done.err


def test_a_decoder_is_trained_on_and_latents_stay(wmpoe, source, autoencoder):
  again = ('train', config('autoencoder'), *TRAIN, '--workdir=runs/d', '--package=decoder.npz',
           f'--config.data.folder={source}', f'--config.data.validation={source}',
           '--config.autoencoder.depth=(1, 1)', '--config.objective.perceptual_weight=0.0',
           f'--config.init_from={autoencoder}', '--config.train.learn=^decode_')
  done = wmpoe(*again, '--config.autoencoder.widths=(8, 8)')
  assert done.code == 0, done.err
  (before, _), (after, _) = (
      zoo.load_latent_space(name) for name in (autoencoder, 'decoder.npz'))
  assert zoo.encoder_hash(before) == zoo.encoder_hash(after)
  changed = {name for name in before.params if any(
      (x != y).any() for x, y in zip(*(jax.tree.leaves(space.params[name])
                                       for space in (before, after)), strict=True))}
  assert changed and all(name.startswith('decode_') for name in changed)
  done = wmpoe(*again, '--config.autoencoder.widths=(8, 16)', '--workdir=runs/other')
  assert done.code == 2 and 'init_from=' in done.err and 'this run is for' in done.err


@pytest.mark.parametrize(('flags', 'message'), [
    (['encode'], 'Give the folder of the episodes, --source, and of the cache, --workdir.'),
    (['encode', '--source=nowhere', '--workdir=there', '--config.autoencoder=gone.npz'],
     "'gone.npz' is neither a file nor a packaged expert"),
    (['eval', '--split=validation'], 'give the folder of the episodes of this world, --source'),
    (['train', '--workdir=run', '--config.autoencoder=cards_base'],
     "holds the expert 'base'; expected an autoencoder"),
])
def test_bad_input_is_named(wmpoe, flags, message):
  command, *rest = flags
  done = wmpoe(command, config('cpu_spatial'), *rest)
  assert done.code == 2
  assert message in done.err


def test_mazes_of_another_resolution_are_named(wmpoe, tmp_path):
  with np.load(EPISODE) as fields:
    wide = fields['image'].repeat(2, axis=1).repeat(2, axis=2)
    np.savez(tmp_path / 'wide.npz', **{**fields, 'image': wide})
  done = wmpoe('encode', config(), f'--source={tmp_path}', '--workdir=cache')
  assert done.code == 2
  assert "wide.npz: field 'image' gives frames (124, 124, 3); expected (60, 60, 3)" in done.err


def test_another_episode_must_be_there(wmpoe, tmp_path):
  (tmp_path / 'one').mkdir()
  (tmp_path / 'one' / 'good.npz').write_bytes(EPISODE.read_bytes())
  (tmp_path / 'one' / 'bad.npz').write_bytes(b'no zip')
  done = wmpoe('eval', config(), '--protocol=table1', f'--source={tmp_path / "one"}',
               '--metrics=psnr', '--workdir=there')
  assert done.code == 2
  assert 'one holds 1 good episode: expected at least 2' in done.err


def test_a_world_alone_is_not_trained(wmpoe):
  done = wmpoe('train', config(''), '--workdir=run')
  assert done.code == 2
  assert 'name a variant, for instance --config=configs/memory_maze.py:cpu_spatial' in done.err
