"""docs/own_data.md, command by command, on a gymnasium environment at tiny scale."""

import importlib.util
import json
import pathlib
import re
import runpy
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmpoe import recipes
from wmpoe import zoo
from wmpoe.commands import common
from wmpoe.commands import own_data
from wmpoe.data import episode
from wmpoe.data import folder
from wmpoe.data import inspection
from wmpoe.data import memory_maze
from wmpoe.data import spaces
from wmpoe.data.sources import rollouts
from wmpoe.evaluation import results
from wmpoe.experts import objective
from wmpoe.session import memory_file

_ROOT = pathlib.Path(__file__).parents[2]
_GUIDE = (_ROOT / 'docs' / 'own_data.md').read_text(encoding='utf-8')
_TRAIN = ['--config.train.batch_size=2', '--config.train.steps=2', '--config.train.log_every=1']
_MODEL = ['--config.model.width=16', '--config.model.depth=1', '--config.model.heads=1',
          '--config.model.target=2']
_TINY = {
    'autoencoder': [*_TRAIN, '--config.autoencoder.widths=(8, 8)',
                    '--config.autoencoder.depth=(1, 1)'],
    'spatial': [*_TRAIN, *_MODEL, '--config.encoder.width=8', '--config.encoder.heads=1',
                '--config.encoder.depth=1', '--config.retrieval.count=2',
                '--config.data.history=4'],
    'depth': [*_TRAIN, '--config.depth.width=8', '--config.depth.blocks=1'],
    'eval': ['--seeds=1', '--episodes=2', '--config.protocol.history=8',
             '--config.protocol.starts=(8, 9)', '--config.protocol.chunks=1',
             '--config.compose.num_steps=1', '--config.compose.long_term.writing.steps=1',
             '--config.compose.long_term.writing.target=2',
             '--config.compose.long_term.writing.capacity=16',
             '--config.compose.long_term.lora.rank=2'],
}
_TINY['spatial_points'] = [*_TINY['spatial'], '--config.points.count=2', '--config.model.refiner=8']


def _tiny(command):
  if command[0] == 'train':
    return _TINY[next(a for a in command if a.startswith('--config=')).partition(':')[2]]
  if command[0] == 'eval':
    depth = ',spatial_depth' * any('points' in word for word in command)
    return [*_TINY['eval'],
            f'--arms=long_term,spatial,all,other_episode,shuffled_history{depth}']
  return _TINY.get(command[0], [])


def _commands():
  """The commands of the guide's sh blocks, without `python -m wmpoe`."""
  blocks = re.findall(r'```sh\n(.*?)```', _GUIDE, flags=re.DOTALL)
  lines = [line for block in blocks for line in block.splitlines()]
  assert all(line.startswith('python -m wmpoe ') for line in lines)
  return [shlex.split(line)[3:] for line in lines]


def _room(gymnasium):
  """A square room with walls of four colours, seen by a camera that looks along the heading."""

  class Room(gymnasium.Env):
    action_space = gymnasium.spaces.Discrete(3)
    observation_space = gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    metadata = {'render_modes': ['rgb_array'], 'render_fps': 5}
    colours = np.array([[220, 40, 40], [40, 200, 60], [50, 70, 230], [230, 220, 50]])

    def reset(self, *, seed=None, options=None):
      super().reset(seed=seed)
      self.pose = np.array([*self.np_random.uniform(0.5, 1.5, 2), self.np_random.uniform(-3, 3)])
      self.time = 0
      return self.render(), {}

    def step(self, action):
      turn, ahead = ((0.4, 0), (-0.4, 0), (0, 0.2))[action]
      self.pose[2] += turn
      direction = np.array([np.cos(self.pose[2]), np.sin(self.pose[2])])
      self.pose[:2] = np.clip(self.pose[:2] + ahead * direction, 0.2, 1.8)
      self.time += 1
      return self.render(), 0.0, False, self.time == 13, {}

    def look(self):
      off = np.linspace(0.64, -0.64, 16)
      rays = np.stack([np.cos(self.pose[2] + off), np.sin(self.pose[2] + off)])
      with np.errstate(divide='ignore'):
        reach = (np.where(rays > 0, 2, 0) - self.pose[:2, None]) / rays
      wall = reach.argmin(axis=0) * 2 + (np.take_along_axis(
          rays, reach.argmin(axis=0)[None], axis=0)[0] > 0)
      height = 8 / (1 + reach.min(axis=0))
      inside = np.abs(np.arange(16) - 7.5)[:, None] < height
      depth = np.where(inside, reach.min(axis=0) * np.cos(off), np.inf)
      return np.where(inside[..., None], self.colours[wall], 90).astype(np.uint8), depth

    def render(self):
      return self.look()[0]

  return Room()


@pytest.fixture
def recorded(tmp_path, monkeypatch):
  """The folders that the guide starts from."""
  gymnasium = pytest.importorskip('gymnasium')
  image = pytest.importorskip('PIL.Image')
  monkeypatch.chdir(tmp_path)
  for seed, name in enumerate(('train', 'validation', 'test')):
    rng = np.random.default_rng(seed)
    with rollouts.EpisodeRecorder(
        _room(gymnasium), f'data/own/{name}', pose=lambda env: env.pose,
        poses=spaces.PLANAR, depth=lambda env: env.look()[1]) as env:
      for _ in range(2):
        _, done = env.reset(seed=int(rng.integers(1000))), False
        while not done:
          *_, done, _ = env.step(int(rng.integers(3)))
  pictures = tmp_path / 'recordings' / 'a'
  pictures.mkdir(parents=True)
  for t, frame in enumerate(np.load(folder.files('data/own/test')[0])['frames'][:3]):
    image.fromarray(frame).save(pictures / f'{t}.png')
  (pictures / 'actions.csv').write_text('action\nleft\nright\nleft\n')
  (tmp_path / 'configs').symlink_to(_ROOT / 'configs')
  return tmp_path


def test_the_guide_from_recording_to_report(recorded, wmpoe, monkeypatch):
  monkeypatch.chdir(recorded)
  commands = _commands()
  assert [c[0] for c in commands] == [
      *['data'] * 4, 'train', 'encode', 'encode', 'train', 'eval', 'memory', 'train', 'train',
      'eval']
  for command in commands:
    if command[0] == 'memory':
      _use()
    done = wmpoe(*command, *_tiny(command))
    assert done.code == 0, (command, done.err)
    assert 'Traceback' not in done.err
  out = results.read(recorded / 'outputs' / 'own' / 'revisit.json')
  assert {'base', 'long_term', 'spatial', 'all', 'copy_turned'} <= set(out['arms'])
  assert list(out['controls']) == ['other_episode', 'shuffled_history']
  assert out['arms']['spatial']['psnr']['n'] == 2
  assert out['meta']['config']['env']['environment'] == 'Room'
  assert memory_file.card('less.npz')['observed'] == [4]
  by_depth = results.read(recorded / 'outputs' / 'own_points' / 'revisit.json')['arms']
  assert {'spatial', 'spatial_depth', 'all', 'copy_warped'} <= set(by_depth)
  assert by_depth['spatial_depth']['psnr'] != by_depth['spatial']['psnr']
  for flags, message in (([], 'Give the experts you trained on your data'),
                         (['--experts=spatial=spatial.npz'], 'spatial.npz was trained on')):
    done = wmpoe('eval', '--config=configs/own_data.py', '--source=data/recorded', *flags)
    assert done.code == 2
    assert message in done.err
  # An expert finds its depth network where it was, or beside itself, and takes no other.
  moved = recorded / 'moved'
  moved.mkdir()
  for name in ('spatial_points', 'depth'):
    (recorded / f'{name}.npz').rename(moved / f'{name}.npz')
  _, card = zoo.load_expert(moved / 'spatial_points.npz')
  space, _ = zoo.load_latent_space('autoencoder.npz')
  assert card['config']['points']['depth'] == str(moved / 'depth.npz')
  assert zoo.point_maps(card['config'], space).camera.half_view == 0.6435
  with pytest.raises(ValueError, match="holds the expert 'autoencoder' with hash"):
    zoo.point_maps({**card['config'], 'points': {
        **card['config']['points'], 'depth': 'autoencoder.npz'}}, space)
  (moved / 'depth.npz').unlink()
  with pytest.raises(FileNotFoundError, match="'depth.npz' is neither a file nor a packaged"):
    zoo.point_maps(zoo.card(moved / 'spatial_points.npz')['config'], space)
  # What lacks depth teaches none.
  kept = next((recorded / 'data' / 'latents' / 'train').glob('*.npz'))
  with np.load(kept) as fields:
    np.savez(kept, **{name: fields[name] for name in fields if name != 'depth'})
  depth = next(c for c in commands if c[:2] == ['train', '--config=configs/own_data.py:depth'])
  done = wmpoe(*depth, '--workdir=runs/none', *_tiny(depth))
  assert done.code == 2 and f'{kept.stem} has no depth; expected it in all episodes' in done.err


def _use():
  """The guide's python that uses what was trained."""
  code, = (block for block in re.findall(r'```python\n(.*?)```', _GUIDE, flags=re.DOTALL)
           if 'load_files' in block)
  names = {}
  exec(code, names)
  assert names['frames'].shape == (1, 8, 16, 16, 3)
  assert names['again'].observed.tolist() == [6]
  with pytest.raises(ValueError, match=r'works in latents of .*, autoencoder=None gives pixels'):
    zoo.load_files({'spatial': 'spatial.npz'})


def test_what_is_for_other_worlds_says_so(wmpoe):
  config = f'--config={_ROOT}/configs/own_data.py'
  done = wmpoe('collect', config)
  assert done.code == 2 and 'your own are converted' in done.err
  done = wmpoe('encode', f'{config}:pixels', '--source=a', '--workdir=b')
  assert done.code == 2 and 'names no trained autoencoder' in done.err
  done = wmpoe('train', f'{config}:odd')
  assert done.code == 2 and "Unknown variant 'odd' of configs/own_data.py" in done.err


def _world(poses, size=16):
  return spaces.Spaces(
      environment='toy', frame=(size, size), poses=poses,
      actions=spaces.Actions(kind='continuous', names=('a', 'b')))


def _folder(path, world):
  path.mkdir()
  text = json.dumps({**world.to_json(), 'format': 'wmpoe.episode', 'version': 1})
  (path / 'spaces.json').write_text(text)
  return str(path)


def _description(variant):
  spec = importlib.util.spec_from_file_location('own', _ROOT / 'configs' / 'own_data.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return common.plain(module.get_config(variant))


@pytest.mark.parametrize('poses', [
    spaces.Poses(), spaces.Poses(kind='vector', names=('j',)), spaces.PLANAR])
def test_worlds_with_and_without_poses_have_a_base_that_runs(tmp_path, poses):
  described = _description('pixels_base')
  own_data.fit(described, _folder(tmp_path / 'd', _world(poses)))
  described['model'].update(width=16, depth=1, heads=1)
  model, shapes = zoo.model(described), zoo.shapes(described)
  assert (model.pose_code is None) == (poses.kind != 'planar')
  frames = model.context + described['model']['target']
  clip = objective.Clip(
      frames=jnp.zeros((2, frames, 16, 16, 3), jnp.uint8), actions=jnp.zeros((2, frames, 2)),
      poses=jnp.zeros((2, frames, poses.dim)), valid=jnp.ones((2, frames), bool))
  loss = jax.eval_shape(
      lambda params, key: objective.clip_loss(
          model, params, clip, key, recipes.objective(described)),
      shapes, jax.random.key(0))
  assert loss.shape == ()
  # The long-term memory writes a table keyed by place, or the layers where there is none.
  targets = described['compose']['long_term']['lora']['targets']
  assert (targets == ['field']) == (poses.kind == 'planar')


def test_what_does_not_fit_the_folder_is_named(tmp_path):
  fit = lambda variant, path: own_data.fit(_description(variant), path)
  poseless = _folder(tmp_path / 'poseless', _world(spaces.Poses()))
  with pytest.raises(ValueError, match="kind 'none'; the spatial expert needs planar ones"):
    fit('pixels_spatial', poseless)
  with pytest.raises(ValueError, match='frames are 20x20, not a multiple of the patch, 8'):
    fit('pixels_base', _folder(tmp_path / 'odd', _world(spaces.PLANAR, 20)))
  with pytest.raises(ValueError, match=r'--config\.data\.folder=FOLDER to train'):
    fit('pixels_base', '')
  with pytest.raises(FileNotFoundError, match=r'nowhere/spaces\.json does not exist'):
    fit('pixels_base', str(tmp_path / 'nowhere'))


def test_vizdoom_is_recorded_as_the_guide_says(wmpoe, monkeypatch, tmp_path):
  pytest.importorskip('vizdoom', reason='needs vizdoom: pip install vizdoom')
  recorder, = (block for block in re.findall(r'```python\n(.*?)```', _GUIDE, flags=re.DOTALL)
               if 'import vizdoom' in block)
  (tmp_path / 'record.py').write_text(recorder)
  monkeypatch.setattr('sys.argv', ['record.py', 'walks', '1', '0'])
  monkeypatch.chdir(tmp_path)  # ViZDoom leaves a file of its own where it runs
  runpy.run_path('record.py', run_name='__main__')
  done = wmpoe('data', 'validate', '--source=walks')
  assert done.code == 0, done.err
  path, = folder.files(tmp_path / 'walks')
  item = episode.Episode.load(path)
  assert item.length >= 260 and item.frames.shape[1:] == (64, 64, 3) and item.actions.shape[1] == 6
  assert item.depth.shape == item.frames.shape[:-1]
  # In cells: rooms and corridors are some of them long, and who stands at a wall is near it.
  assert 0.05 < item.depth.min() < 0.5 and 2 < item.depth.max() < 8
  assert item.frames.any(axis=(1, 2, 3)).all(), 'no black frames'
  # It walks: places differ, steps are short, and a turn to the left is one in the poses, too.
  steps = np.linalg.norm(np.diff(item.poses[:, :2], axis=0), axis=1)
  assert np.ptp(item.poses[:, :2], axis=0).max() > 1 and steps.max() < 0.5
  turned = memory_maze.wrap(np.diff(item.poses[:, 2]))
  names = inspection.spaces_of(tmp_path / 'walks').actions.names
  left, right = (turned[item.actions[1:, names.index(f'turn_{side}')] == 1]
                 for side in ('left', 'right'))
  assert left.min() > 0 > right.max()
