"""Memory Maze: networks that are a model by themselves, as memories an arm can read alone.

full      attention over the whole history: a DiT with a context of 200 frames
ssm       a state-space model that carries a state of constant size
forcing   a DiT trained by diffusion forcing: history guidance, vanilla and temporal
"""

from collections.abc import Mapping
from typing import Any

from wmpoe import packaged
from wmpoe import zoo
from wmpoe.experts import history_guidance
from wmpoe.experts import recurrent
from wmpoe.experts import short_term

# What a card says about the training of an arm, if it does.
BUDGET = ('steps', 'train_seconds', 'train_flops')


def load(
    files: Mapping[str, str], env: zoo.Description, guidance: Mapping[str, Mapping[str, Any]],
    encoder: str,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], list[str]]:
  """The baselines whose weights there are.

  Args:
    files: By kind ('full', 'ssm', 'forcing') a file or packaged name; '' for the packaged one if
      there is one.
    env: The environment they must be trained on.
    guidance: By arm, the 'windows' and 'strengths' of history guidance.
    encoder: sha256 of the autoencoder whose latents they must be trained on.

  Returns:
    `(memories by arm, facts about their training by arm, kinds that were left out)`.

  Raises:
    ValueError: for an unknown kind, or weights of another kind, environment or autoencoder.
    FileNotFoundError: if a named file does not exist.
  """
  unknown = set(files) - set(zoo.BASELINES)
  if unknown:
    raise ValueError(
        f'Unknown baselines {sorted(unknown)}; expected some of {", ".join(zoo.BASELINES)}.')
  memories: dict[str, Any] = {}
  training: dict[str, dict[str, Any]] = {}
  left_out = []
  for kind, path in files.items():
    path = path or f'memory_maze_{kind}'
    if not files[kind] and path not in packaged.names():
      left_out.append(kind)
      continue
    params, card = zoo.load_expert(path)
    described = card['config']
    for what, given, expected in (
        ('the expert', described['expert'], kind), ('the environment', described['env'], dict(env)),
        ('the autoencoder', described['encoder_sha256'], encoder)):
      if given != expected:
        raise ValueError(f'baselines.{kind}={path!r} is of {what} {given}; expected {expected}.')
    made = _memories(kind, params, described, guidance)
    facts = {key: card[key] for key in BUDGET if key in card}
    facts |= {'file': path, 'batch_size': described['train']['batch_size'],
              'init_from': described['init_from'], 'parameters': card['num_parameters']}
    memories |= made
    training |= dict.fromkeys(made, facts)
  return memories, training, left_out


def _memories(
    kind: str, params: Any, described: zoo.Description, guidance: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
  model, dims = zoo.model(described), zoo.dimensions(described['env'])
  if kind == 'full':
    return {kind: short_term.ShortTerm(params=params, model=model, baseline='base', **dims)}
  if kind == 'ssm':
    return {kind: recurrent.Recurrent(
        params=params, model=model, baseline='base', pose_dim=dims['pose_dim'])}
  return {
      arm: history_guidance.HistoryGuidance(
          params=params, model=model, windows=tuple(map(tuple, setting['windows'])),
          strengths=tuple(setting['strengths']), **dims)
      for arm, setting in guidance.items()}
