"""What the page can set."""

from collections.abc import Mapping
import dataclasses

from wmpoe import recipes
from wmpoe import world_model
from wmpoe.experts import composition


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What the page can set.

  Attributes:
    weights: Weight of each memory.
    on: Whether each memory takes part.
    rule: Name of the composition rule.
    sampler: Name of the sampler.
    steps: Denoising steps.
    chunk: Frames imagined at a time, for one decision.
    compare: Also dream without memory.
    overlay: Show which expert drew what.
    remember: Write what is seen in reality.
    follow: Dream along the recording instead of following the keys.
    run: Keep going without a key.
    pause: Stand still.
    mode: 'real' or 'dream'.
  """

  weights: Mapping[str, float]
  on: Mapping[str, bool]
  rule: str
  sampler: str
  steps: int
  chunk: int = 1
  compare: bool = True
  overlay: bool = False
  remember: bool = True
  follow: bool = False
  run: bool = False
  pause: bool = False
  mode: str = 'real'

  @classmethod
  def of(cls, model: world_model.WorldModel) -> 'Settings':
    """The settings a model comes with; rules and samplers without a name become the default."""
    rules = [name for name, rule in composition.RULES.items() if rule == model.rule]
    kinds = [name for name, kind in recipes.SAMPLERS.items() if type(model.sampler) is kind]
    return cls(
        weights={n: float(m.weight) for n, m in model.memories.items()},
        on=dict.fromkeys(model.memories, True), rule=(*rules, 'shared_base')[0],
        sampler=(*kinds, 'ddim')[0], steps=model.num_steps)

  def compose(self, model: world_model.WorldModel) -> world_model.WorldModel:
    """The model with these settings: weights are traced, and an expert that is off has weight 0."""
    weights = {n: w if self.on[n] else 0.0 for n, w in self.weights.items() if n in model.memories}
    rule = self.rule if model.memories else 'shared_base'  # the base alone stays as it is
    composed = model.compose('base', *model.memories, weights=weights, rule=rule)
    return dataclasses.replace(
        composed, sampler=recipes.sampler({'name': self.sampler}), num_steps=self.steps,
        chunk=self.chunk)
