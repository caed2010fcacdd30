"""The one denoising loss: training calls it, and so does the inner loop of the long-term memory.

Weightings are stated for the eps error, as is usual, and evaluated on the x_0 error with the
factor `SNR = e^logsnr` between them: `|eps_hat - eps|^2 = SNR |x0_hat - x_0|^2`. That is exact,
and it stays finite at both ends of the schedule, where a division by sigma would not.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from wmpoe.diffusion import predictions

# (x_t [B T H W C], logsnr [B T]) -> the network's prediction [B T H W C]
Predict = Callable[[jax.Array, jax.Array], jax.Array]


def sigmoid_weight(logsnr: chex.Array, *, bias: float = -1.0) -> jax.Array:
  """`sigmoid(bias - logsnr)` on the eps error (arXiv 2410.19324); the paper's choice, bias -1."""
  return jax.nn.sigmoid(bias - logsnr)


def min_snr_weight(logsnr: chex.Array, *, gamma: float = 5.0) -> jax.Array:
  """`min(SNR, gamma) / SNR` on the eps error (arXiv 2303.09556)."""
  return jnp.minimum(1.0, gamma * jnp.exp(-jnp.asarray(logsnr, jnp.float32)))


def uniform_weight(logsnr: chex.Array) -> jax.Array:
  """Plain eps-MSE (arXiv 2006.11239)."""
  return jnp.ones_like(jnp.asarray(logsnr, jnp.float32))


def v_weight(logsnr: chex.Array, *, sigma_floor: float = 0.1) -> jax.Array:
  """v-MSE written as a weight on the eps error, with a floor on sigma.

  `|v_hat - v|^2 = |x0_hat - x_0|^2 / sigma^2`; the floor bounds the weight where an x_0 output
  leaves nothing to learn but rounding. Every noise level, the highest included, counts.
  """
  logsnr = jnp.asarray(logsnr, jnp.float32)
  sigma = jnp.maximum(jnp.sqrt(jax.nn.sigmoid(-logsnr)), sigma_floor)
  return jnp.exp(-logsnr) / jnp.square(sigma)


WEIGHTINGS: dict[str, Callable[..., jax.Array]] = {
    'sigmoid': sigmoid_weight,
    'min_snr': min_snr_weight,
    'uniform': uniform_weight,
    'v': v_weight,
}


def weight(name: str, logsnr: chex.Array) -> jax.Array:
  """The named weighting on the eps error.

  Raises:
    ValueError: if the name is unknown.
  """
  if name not in WEIGHTINGS:
    raise ValueError(f'Unknown weighting {name!r}; expected one of {", ".join(WEIGHTINGS)}.')
  return WEIGHTINGS[name](logsnr)


def denoising_loss(
    predict: Predict,
    x_0: chex.Array,
    logsnr: chex.Array,
    key: chex.PRNGKey,
    *,
    prediction: str = 'v',
    weighting: str = 'sigmoid',
    mask: chex.Array | None = None,
    pixel_weight: chex.Array | None = None,
) -> jax.Array:
  """Weighted mean squared error of a denoiser on noised frames.

  `loss = mean_{b,t} mask w(logsnr) |eps_hat - eps|^2`, averaged over pixels and over the frames
  the mask keeps.

  Args:
    predict: The network with its conditions bound: `(x_t, logsnr) -> prediction`.
    x_0: Clean target frames [B T H W C].
    logsnr: Level of every frame [B T].
    key: Random key of the noise.
    prediction: What `predict` returns: 'eps', 'x0' or 'v'.
    weighting: 'sigmoid', 'min_snr', 'uniform' or 'v'.
    mask: Optional [B T]; frames with 0 do not count.
    pixel_weight: Optional, broadcastable to `x_0`; multiplies the squared error of every pixel.

  Returns:
    A float32 scalar; 0 if the mask keeps nothing.

  Raises:
    ValueError: if the prediction or the weighting is unknown.
  """
  chex.assert_equal_shape_prefix([x_0, logsnr], 2)
  x_0 = jnp.asarray(x_0, jnp.float32)
  x_t = predictions.diffuse(x_0, jax.random.normal(key, x_0.shape), logsnr)
  x0_hat = predictions.to_x0(
      prediction, x_t, jnp.asarray(predict(x_t, logsnr), jnp.float32), logsnr)
  error = jnp.square(x0_hat - x_0)
  if pixel_weight is not None:
    error = error * pixel_weight
  error = jnp.mean(error, axis=tuple(range(2, x_0.ndim)))
  error = error * weight(weighting, logsnr) * jnp.exp(logsnr)
  if mask is None:
    return jnp.mean(error)
  mask = jnp.asarray(mask, jnp.float32)
  return jnp.sum(error * mask) / jnp.maximum(jnp.sum(mask), 1.0)
