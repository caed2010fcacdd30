"""Memory Maze: trained networks to compare with, as memories. All but the last are models alone.

sliding   attention over the last 33 frames: the paper's short-term network as the only model
full      attention over the whole history: a DiT with a context of 200 frames
ssm       a state-space model that carries a state of constant size
forcing   a DiT trained by diffusion forcing: history guidance, vanilla and temporal
absolute  a DiT that is told absolute poses, the episode written into LoRA: the paper's spatial one
"""

from collections.abc import Mapping
from typing import Any

from wmpoe import packaged
from wmpoe import recipes
from wmpoe import zoo
from wmpoe.experts import base as base_lib
from wmpoe.experts import history_guidance
from wmpoe.experts import recurrent
from wmpoe.experts import short_term

# What a card says about the training of an arm, if it does.
BUDGET = ('steps', 'train_seconds', 'train_flops')
# What a card calls the expert, where that is not the baseline's name.
_EXPERTS = {'sliding': 'short_term'}


def load(
    setting: Mapping[str, Any], env: zoo.Description, encoder: str,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], list[str]]:
  """The baselines whose weights there are.

  Args:
    setting: The config's `protocol`: 'baselines', by kind a file or packaged name, '' for the
      packaged one if there is one that fits; 'guidance', by arm the 'windows' and 'strengths' of
      history guidance; 'absolute', how LoRA is written, as `recipes.long_term` reads it.
    env: The environment they must be trained on.
    encoder: `zoo.encoder_hash` of the latents they must be trained on.

  Returns:
    `(memories by arm, facts about their training by arm, kinds that were left out)`.

  Raises:
    ValueError: for an unknown kind, or weights of another kind, environment or autoencoder.
    FileNotFoundError: if a named file does not exist.
  """
  files = setting['baselines']
  unknown = set(files) - set(zoo.BASELINES)
  if unknown:
    raise ValueError(
        f'Unknown baselines {sorted(unknown)}; expected some of {", ".join(zoo.BASELINES)}.')
  memories: dict[str, Any] = {}
  training: dict[str, dict[str, Any]] = {}
  left_out = []
  for kind in (kind for kind in zoo.BASELINES if kind in files):
    path = files[kind] or f'memory_maze_{kind}'
    if not files[kind] and path not in packaged.names():
      left_out.append(kind)
      continue
    params, card = zoo.load_expert(path)
    described = card['config']
    misfits = [
        f'the {what} {given}, expected {expected}' for what, given, expected in (
            ('expert', described['expert'], _EXPERTS.get(kind, kind)),
            ('environment', described['env'], dict(env)),
            ('autoencoder', described['encoder_sha256'], encoder)) if given != expected]
    if misfits and not files[kind]:
      left_out.append(kind)  # it was not asked for: the user has a world of their own
      continue
    if misfits:
      raise ValueError(f'baselines.{kind}={path!r} is of {" and of ".join(misfits)}.')
    made = _memories(kind, params, described, setting)
    facts = {key: card[key] for key in BUDGET if key in card}
    facts |= {'file': path, 'batch_size': described['train']['batch_size'],
              'init_from': described['init_from'], 'parameters': card['num_parameters']}
    memories |= made
    training |= dict.fromkeys(made, facts)
  return memories, training, left_out


def _memories(
    kind: str, params: Any, described: zoo.Description, setting: Mapping[str, Any]
) -> dict[str, Any]:
  model, dims = zoo.model(described), zoo.dimensions(described['env'])
  if kind in ('sliding', 'full'):
    return {kind: short_term.ShortTerm(params=params, model=model, baseline='base', **dims)}
  if kind == 'ssm':
    return {kind: recurrent.Recurrent(
        params=params, model=model, baseline='base', pose_dim=dims['pose_dim'])}
  if kind == 'absolute':
    base = base_lib.Base(params=params, model=model)
    return {'spatial_absolute': recipes.long_term(setting[kind], base, **dims)}
  return {
      arm: history_guidance.HistoryGuidance(
          params=params, model=model, windows=tuple(map(tuple, guided['windows'])),
          strengths=tuple(guided['strengths']), **dims)
      for arm, guided in setting['guidance'].items()}
