"""Observations of a gymnasium environment, normalized by the exact statistics of all that came before.

For a vector of environments, and the rewards, see normalize_vec_env.py.
"""

import pathlib
import tempfile
import types

import gymnasium as gym
import numpy as np
from sklearn.base import clone

from bncpu import BatchNormTransformer


def normalized_space(space, limit):
    """The space of the normalized observations; keys keep their order."""
    if isinstance(space, gym.spaces.Dict):
        return gym.spaces.Dict([(key, normalized_space(part, limit)) for key, part in space.spaces.items()])
    if not isinstance(space, gym.spaces.Box):
        raise ValueError(f"observation_space must be a Box, or a Dict of them; got {space}")
    return gym.spaces.Box(-limit, limit, space.shape, np.float32)


class NormalizeObservation(gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """In the place of gymnasium.wrappers.NormalizeObservation: mean and variance of each value, learned in float64.

    gymnasium's are float32, whose error grows: 2e-5 of the variance after 100,000 steps. They start from a prior, which
    makes the variance of values with a mean of 1000 standard deviations twice too large after 100 steps.

    Without a prior, the first observation of all becomes 0, since it is the mean and the variance is 0; where the
    second differs, it becomes 1 or -1. A value that has never changed gives 0; frozen, its first move is divided by
    ``sqrt(epsilon)``: `clip` limits that. NaN is left out of the statistics and stays NaN; an infinity is an error, and
    so is a frozen wrapper that has neither learned nor loaded.

    Parameters
    ----------
    env : gymnasium.Env
        With observations in a Box, or in a Dict of them.
    epsilon : float, default=1e-8
        Added to the variance.
    clip : float, optional
        Limit of the results.

    Attributes
    ----------
    update_running_mean : bool
        True at first; False freezes the statistics, for evaluation.
    transformer : BatchNormTransformer
        One for all keys, in the order of `gymnasium.spaces.flatten`.
    """

    def __init__(self, env, epsilon=1e-8, clip=None):
        if epsilon <= 0:
            raise gym.error.InvalidBound(f"`epsilon` should be strictly positive, got {epsilon}")
        gym.utils.RecordConstructorArgs.__init__(self, epsilon=epsilon, clip=clip)
        gym.ObservationWrapper.__init__(self, env)
        self.observation_space = normalized_space(env.observation_space, np.inf if clip is None else clip)
        self.transformer = BatchNormTransformer(eps=epsilon, clip=clip)
        self.epsilon, self.update_running_mean = epsilon, True

    @property
    def obs_rms(self):
        """Mean, variance and count, as gymnasium names them; those of a Dict are flat."""
        learned, shape = self.transformer, self.observation_space.shape
        shape = (-1,) if shape is None else shape
        mean, var = learned.running_mean_.reshape(shape), learned.running_var_.reshape(shape)
        return types.SimpleNamespace(mean=mean, var=var, count=learned.n_samples_seen_)

    def observation(self, observation):
        """Learn from an observation unless frozen, and normalize it to float32."""
        row = gym.spaces.flatten(self.env.observation_space, observation)[np.newaxis]
        if self.update_running_mean:
            self.transformer.partial_fit(row)
        return gym.spaces.unflatten(self.observation_space, self.transformer.transform(row)[0])

    def save(self, path):
        """Write the statistics as JSON."""
        self.transformer.save(path)

    def load(self, path):
        """Go on, to the bit, with the statistics that `save` wrote, and its own epsilon and clip; returns itself."""
        self.transformer = clone(self.transformer).merge(BatchNormTransformer.load(path))
        return self


if __name__ == "__main__":
    plain, env = gym.make("Pendulum-v1"), NormalizeObservation(gym.make("Pendulum-v1"), clip=10)
    seen = []
    for seed in range(5):
        seen.append(plain.reset(seed=seed)[0])
        env.reset(seed=seed)
        for action in np.random.default_rng(seed).uniform(-2, 2, (200, 1)).astype(np.float32):
            seen.append(plain.step(action)[0])
            env.step(action)
    with tempfile.TemporaryDirectory() as checkpoint:
        env.save(pathlib.Path(checkpoint, "observations.json"))
        evaluated = NormalizeObservation(plain, clip=10).load(pathlib.Path(checkpoint, "observations.json"))
    env.update_running_mean = evaluated.update_running_mean = False
    exact = np.var(seen, axis=0, dtype=np.float64)
    same = (np.array_equal(env.observation(obs), evaluated.observation(obs)) for obs in seen)
    print("observations:", evaluated.obs_rms.count)
    print("variance equal to 12 digits:", np.allclose(env.obs_rms.var, exact, rtol=1e-12, atol=0))
    print("from JSON the same bits:", all(same))
