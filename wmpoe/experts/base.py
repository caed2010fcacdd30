"""The base expert: a video denoiser that sees the last few frames and the actions, no memory."""

from typing import Any

from flax import struct

from wmpoe.experts import expert


@struct.dataclass
class Base:
  """Attributes: `params` of the network; `model`, static."""

  params: Any
  model: expert.Model = struct.field(pytree_node=False, kw_only=True)

  def read(self, query: expert.Query) -> expert.NetworkDenoiser:
    """The base denoiser for the frames the query asks for."""
    return expert.bind(self.model, self.params, query)
