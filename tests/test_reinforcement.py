"""The recipes for gymnasium and Stable-Baselines3: exact statistics, frozen when told to, back from JSON to the bit."""

import importlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError
from test_examples import printed

gym = pytest.importorskip("gymnasium", reason="pip install gymnasium stable-baselines3 torch")
vec_env = pytest.importorskip("stable_baselines3.common.vec_env", reason="pip install stable-baselines3 torch")

EPS = 1e-8
EXACT = dict(rtol=1e-12, atol=0)
ROUNDED = dict(rtol=2**-22, atol=1e-6)  # float32, of differences of float32 in float64
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def normalize(monkeypatch):
    """The example of gymnasium."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("normalize_observations").NormalizeObservation


@pytest.fixture
def ours(monkeypatch):
    """The example of Stable-Baselines3."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("normalize_vec_env")


class Replay(gym.Env):
    """Gives the observations of a list, and their numbers as rewards."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, observations, space=None):
        first = np.asarray(observations[0])
        low, high = (0, 255) if first.dtype == np.uint8 else (-np.inf, np.inf)
        self.observation_space = space or gym.spaces.Box(low, high, first.shape, first.dtype)
        self.observations = observations

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return self.observations[0], {}

    def step(self, action):
        self.at += 1
        return self.observations[self.at], float(self.at), False, self.at == len(self.observations) - 1, {}


def drawn(*shape, mean=0.0, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) + np.float32(mean)


def played(env):
    """What an environment of gymnasium gives in an episode."""
    seen, done = [env.reset()[0]], False
    while not done:
        obs, _, _, done, _ = env.step(0)
        seen.append(obs)
    return seen


def standardized(x, seen, eps=EPS):
    """`x` by the mean and variance of what was seen along the first axis, in float64."""
    seen = np.asarray(seen, np.float64)
    return (x - seen.mean(axis=0)) / np.sqrt(seen.var(axis=0) + eps)


def saved(env, folder):
    env.save(folder / "state.json")
    return (folder / "state.json").read_bytes()


@pytest.mark.parametrize("shape", [(), (3,), (2, 5, 3)])
@pytest.mark.parametrize("mean", [0, -1e4, 1e6])
def test_each_observation_is_normalized_by_all_up_to_it(shape, mean, normalize):
    seen = drawn(60, *shape, mean=mean)
    env = normalize(Replay(seen))
    for n, y in enumerate(played(env), 1):
        assert y.dtype == np.float32 and y.shape == shape and env.observation_space.contains(y)
        assert_allclose(y, standardized(seen[n - 1], seen[:n]), **ROUNDED)
    assert env.obs_rms.count == 60
    assert_allclose(env.obs_rms.mean, seen.mean(axis=0, dtype=np.float64), **EXACT)
    assert_allclose(env.obs_rms.var, seen.var(axis=0, dtype=np.float64), **EXACT)


def test_images_are_observations_too(normalize):
    seen = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), np.uint8)
    assert_allclose(played(normalize(Replay(seen)))[-1], standardized(seen[-1], seen), **ROUNDED)


def test_a_stream_begins_with_0_and_1_and_what_stands_still_is_0(normalize):
    first, second, third = played(normalize(Replay(np.float32([[5, 7, 3], [6, 5, 3], [7, 9, 3]]))))
    assert_array_equal(first, 0)
    assert_allclose(second, [1, -1, 0], rtol=1e-6)
    assert third[2] == 0


def test_a_value_that_moves_when_frozen_is_limited_by_clip(normalize):
    results = []
    for clip in (None, 5):
        env = normalize(Replay(np.float32([[3], [3], [3]])), clip=clip)
        played(env)
        env.update_running_mean = False
        results.append(env.observation(np.float32([4])).item())
    assert_allclose(results, [1 / np.sqrt(EPS), 5])


def test_clip_limits_results_and_their_space(normalize):
    seen = drawn(50, 3)
    free, limited = played(normalize(Replay(seen))), played(env := normalize(Replay(seen), clip=0.5))
    assert_array_equal(limited, np.clip(free, -0.5, 0.5))
    assert np.max(np.abs(free)) > 1
    assert env.observation_space == gym.spaces.Box(-0.5, 0.5, (3,), np.float32)


def test_epsilon_is_added_to_the_variance(normalize):
    seen = drawn(20, 3)
    assert_allclose(played(normalize(Replay(seen), 0.5))[-1], standardized(seen[-1], seen, 0.5), **ROUNDED)


def test_frozen_statistics_stay_byte_for_byte(normalize, tmp_path):
    seen = drawn(30, 3)
    env = normalize(Replay(seen))
    learned = played(env)
    written = [saved(env, tmp_path)]
    for learns in (False, True):
        env.update_running_mean = learns
        fixed = [env.observation(obs) for obs in seen[::-1]][::-1]
        assert np.array_equal(fixed, env.transformer.transform(seen)) is not learns
        written.append(saved(env, tmp_path))
    assert not np.array_equal(fixed, learned)
    assert written[0] == written[1] != written[2]


def test_a_wrapper_from_json_goes_on_to_the_bit(normalize, tmp_path):
    env = normalize(Replay(drawn(30, 3, mean=100)), clip=2)
    played(env)
    assert json.loads(saved(env, tmp_path))["format"] == "bncpu.BatchNormTransformer"
    other = normalize(Replay(drawn(40, 3, seed=1)), clip=2)
    played(other)
    other.load(tmp_path / "state.json")
    env.env = Replay(drawn(40, 3, seed=1))
    assert_array_equal(played(other), played(env))
    assert_array_equal(other.obs_rms.var, env.obs_rms.var)
    assert other.obs_rms.count == 70
    limited = normalize(Replay(drawn(40, 3)), clip=0.5).load(tmp_path / "state.json")
    assert np.max(np.abs(played(limited))) == 0.5


def test_observations_of_several_keys_are_normalized_each(normalize):
    parts = {"b": drawn(40, 2, 3, mean=50), "a": drawn(40, 4, seed=1), "image": drawn(40, 2, 2, seed=2)}
    spaces = [(key, gym.spaces.Box(-np.inf, np.inf, x.shape[1:], np.float32)) for key, x in parts.items()]
    nested = gym.spaces.Dict([*spaces[:2], ("deep", gym.spaces.Dict([spaces[2]]))])
    seen = [{"b": b, "a": a, "deep": {"image": image}} for b, a, image in zip(*parts.values(), strict=True)]
    results = played(env := normalize(Replay(seen, nested)))
    assert all(env.observation_space.contains(y) for y in results)
    results = {
        "b": [y["b"] for y in results],
        "a": [y["a"] for y in results],
        "image": [y["deep"]["image"] for y in results],
    }
    for key, x in parts.items():
        assert_array_equal(results[key], played(normalize(Replay(x))), err_msg=key)
    assert env.obs_rms.mean.shape == (14,)


def test_missing_values_are_left_out_and_infinities_refused(normalize):
    seen = drawn(30, 2)
    seen[7, 0] = np.nan
    env = normalize(Replay(seen))
    results = np.array(played(env))
    assert_array_equal(np.isnan(results), np.isnan(seen))
    assert_allclose(env.obs_rms.mean, np.nanmean(seen, axis=0, dtype=np.float64), **EXACT)
    assert_array_equal(env.obs_rms.count, [29, 30])
    before = env.obs_rms
    with pytest.raises(ValueError, match="infinity"):
        env.observation(np.float32([1, np.inf]))
    assert_array_equal(env.obs_rms.count, before.count)
    theirs = gym.wrappers.NormalizeObservation(Replay(seen))
    assert np.isnan(played(theirs)[-1][0])


def test_a_frozen_wrapper_that_knows_nothing_says_so(normalize):
    env = normalize(Replay(drawn(3, 2)))
    env.update_running_mean = False
    with pytest.raises(NotFittedError):
        env.reset()


@pytest.mark.parametrize("epsilon", [0, -1e-8])
def test_epsilon_is_positive(epsilon, normalize):
    with pytest.raises(gym.error.InvalidBound, match=f"positive, got {epsilon}"):
        normalize(Replay(drawn(3, 2)), epsilon)


def test_only_boxes_are_normalized(normalize):
    with pytest.raises(ValueError, match=r"must be a Box.*Discrete"):
        normalize(Replay([0, 1], gym.spaces.Dict(which=gym.spaces.Discrete(3))))


def test_an_environment_can_be_made_again_from_its_spec(normalize):
    env = normalize(gym.make("CartPole-v1"), epsilon=1e-4, clip=3)
    again = gym.make(env.spec)
    assert (again.transformer.eps, again.transformer.clip) == (1e-4, 3)


def several(n=3, steps=25, mean=10.0):
    return vec_env.DummyVecEnv([lambda seed=seed: Replay(drawn(steps, 4, mean=mean, seed=seed)) for seed in range(n)])


def with_keys():
    def env():
        space = gym.spaces.Box(-np.inf, np.inf, (2, 3), np.float32)
        seen = [{"a": a, "b": b} for a, b in zip(drawn(25, 2, 3, mean=3), drawn(25, 2, 3, seed=1), strict=True)]
        return Replay(seen, gym.spaces.Dict(a=space, b=space))

    return vec_env.DummyVecEnv([env, env])


def stepped(env, steps=60):
    """What a vector of environments gives, and the observations before."""
    results, seen = [env.reset()], [env.get_original_obs()]
    for _ in range(steps):
        results.append(env.step(np.zeros(env.num_envs, int))[0])
        seen.append(env.get_original_obs())
    return results, seen


def bytes_of(env, folder):
    env.save_statistics(folder / "statistics.json")
    return (folder / "statistics.json").read_bytes()


@pytest.mark.parametrize("mean", [0, -1e4, 1e6])
def test_a_vector_is_normalized_by_all_up_to_it(mean, ours):
    env = ours.ExactVecNormalize(several(mean=mean))
    results, seen = stepped(env)
    for n, y in enumerate(results, 1):
        assert y.dtype == np.float32
        assert_allclose(y, np.clip(standardized(seen[n - 1], np.concatenate(seen[:n])), -10, 10), **ROUNDED)
    seen = np.concatenate(seen).astype(np.float64)
    assert env.obs_rms.count == len(seen) == 61 * 3
    assert_allclose(env.obs_rms.mean, seen.mean(axis=0), **EXACT)
    assert_allclose(env.obs_rms.var, seen.var(axis=0), **EXACT)


@pytest.mark.parametrize("made", [several, with_keys])
def test_the_epsilon_of_a_vector_is_added_to_the_variance(made, ours):
    env = ours.ExactVecNormalize(made(), epsilon=0.5)
    results, seen = stepped(env)
    if made is with_keys:
        results, seen = [y["a"] for y in results], [x["a"] for x in seen]
    assert_allclose(results[-1], standardized(seen[-1], np.concatenate(seen), 0.5), **ROUNDED)


def test_rewards_are_divided_by_the_deviation_of_discounted_returns(ours):
    env = ours.ExactVecNormalize(several(), gamma=0.5, clip_reward=1.0)
    env.reset()
    returns, seen = 0.0, []
    for n in range(60):
        _, rewards, _, infos = env.step(np.zeros(3, int))
        given = n % 24 + 1
        returns = 0.5 * returns + given
        seen += [returns] * 3
        assert_allclose(rewards, np.full(3, min(given / np.sqrt(np.var(seen) + EPS), 1.0)), **ROUNDED)
        if given == 24:
            last = np.array([env.envs[i].observations[-1] for i in range(3)])
            told = [info["terminal_observation"] for info in infos]
            assert_allclose(told, env.normalize_obs(last), rtol=0, atol=0)
            returns = 0.0
    assert_allclose(env.ret_rms.var, np.var(seen), **EXACT)


def test_with_their_prior_the_results_are_theirs(ours):
    theirs = vec_env.VecNormalize(several())
    env = ours.ExactVecNormalize(several())
    env.obs_rms = ours.RunningStatistics(epsilon=1e-4, shape=(4,), eps=EPS)
    # They sum a batch in float32, whose roundings of 10 are 1e-6.
    assert_allclose(stepped(env)[0], stepped(theirs)[0], rtol=0, atol=3e-6)
    assert_allclose(env.obs_rms.count, theirs.obs_rms.count, **EXACT)
    without = ours.ExactVecNormalize(several())
    assert np.max(np.abs(np.subtract(stepped(without)[0], stepped(theirs)[0]))) > 1e-3


@pytest.mark.parametrize("made", [several, with_keys])
def test_a_vector_that_does_not_train_changes_nothing(made, ours, tmp_path):
    env = ours.ExactVecNormalize(made())
    stepped(env)
    before = bytes_of(env, tmp_path)
    env.training = False
    first, second = stepped(env)[0], stepped(env)[0]
    assert pickle.dumps(first) == pickle.dumps(second)
    assert bytes_of(env, tmp_path) == before
    env.training = True
    stepped(env)
    assert bytes_of(env, tmp_path) != before


@pytest.mark.parametrize("made", [several, with_keys])
@pytest.mark.parametrize("through", ["json", "pickle"])
def test_a_vector_that_was_saved_goes_on_to_the_bit(made, through, ours, tmp_path):
    env = ours.ExactVecNormalize(made(), clip_obs=2.0)
    stepped(env)
    if through == "json":
        env.save_statistics(tmp_path / "statistics.json")
        other = ours.ExactVecNormalize(made(), clip_obs=2.0)
        stepped(other)
        other.load_statistics(tmp_path / "statistics.json")
    else:
        env.save(tmp_path / "env.pkl")
        other = vec_env.VecNormalize.load(tmp_path / "env.pkl", made())
    for _ in range(2):
        assert pickle.dumps(stepped(other)) == pickle.dumps(stepped(env))
    assert other.ret_rms.var == env.ret_rms.var
    assert bytes_of(other, tmp_path) == bytes_of(env, tmp_path)


def test_statistics_of_another_environment_are_refused(ours, tmp_path):
    env, other = ours.ExactVecNormalize(several()), ours.ExactVecNormalize(with_keys())
    stepped(env)
    stepped(other)
    before = bytes_of(other, tmp_path)
    env.save_statistics(tmp_path / "of_env.json")
    with pytest.raises(ValueError, match=r"must hold 13 features.*got 5"):
        other.load_statistics(tmp_path / "of_env.json")
    assert bytes_of(other, tmp_path) == before


def test_environments_of_evaluation_are_synchronized_and_then_apart(ours):
    env, evaluated = ours.ExactVecNormalize(several()), ours.ExactVecNormalize(several(), training=False)
    _, seen = stepped(env)
    assert_array_equal(evaluated.normalize_obs(seen[0]), np.clip(seen[0] / np.float32(np.sqrt(1 + EPS)), -10, 10))
    vec_env.sync_envs_normalization(env, evaluated)
    known = [evaluated.normalize_obs(obs) for obs in seen]
    assert_array_equal(known, [env.normalize_obs(obs) for obs in seen])
    stepped(env, 5)
    assert_array_equal(known, [evaluated.normalize_obs(obs) for obs in seen])
    assert not np.array_equal(known, [env.normalize_obs(obs) for obs in seen])


def test_observations_are_clipped_and_come_back(ours):
    env = ours.ExactVecNormalize(several(), clip_obs=1.5)
    results, seen = stepped(env)
    assert np.max(np.abs(results)) == 1.5
    env.clip_obs = 100.0
    for obs in seen:
        assert_allclose(env.unnormalize_obs(env.normalize_obs(obs)), obs, rtol=1e-5)


def test_only_the_keys_that_were_named_are_normalized(ours):
    env = ours.ExactVecNormalize(with_keys(), norm_obs_keys=["b"])
    results, seen = stepped(env)
    assert_array_equal([y["a"] for y in results], [x["a"] for x in seen])
    everything = np.concatenate([x["b"] for x in seen])
    assert_allclose(results[-1]["b"], standardized(seen[-1]["b"], everything), **ROUNDED)


def test_rewards_alone(ours, tmp_path):
    env = ours.ExactVecNormalize(several(), norm_obs=False)
    results, seen = stepped(env)
    assert_array_equal(results, seen)
    other = ours.ExactVecNormalize(several(), norm_obs=False)
    env.save_statistics(tmp_path / "returns.json")
    assert other.load_statistics(tmp_path / "returns.json").ret_rms.var == env.ret_rms.var != 1


def test_parts_of_a_stream_combine_exactly_and_copies_are_apart(ours):
    x = drawn(50, 2, 3, mean=1e4)
    parts = [ours.RunningStatistics(shape=(2, 3)) for _ in range(2)]
    parts[0].update(x[:20])
    parts[1].update(x[20:])
    parts[0].combine(parts[1])
    assert_allclose(parts[0].var, x.var(axis=0, dtype=np.float64), **EXACT)
    copied = parts[0].copy()
    copied.update(x)
    assert (copied.count, parts[0].count) == (100, 50)


def test_statistics_cannot_be_set_by_the_way(ours):
    statistics = ours.RunningStatistics(shape=(3,))
    with pytest.raises(AttributeError):
        statistics.mean = np.zeros(3)


def test_a_vector_with_missing_values_goes_on(ours):
    def env():
        seen = drawn(25, 2)
        seen[5, 0] = np.nan
        return vec_env.DummyVecEnv([lambda: Replay(seen)])

    ours_env, theirs = ours.ExactVecNormalize(env()), vec_env.VecNormalize(env())
    (results, seen), (poisoned, _) = stepped(ours_env), stepped(theirs)
    assert_array_equal(np.isnan(results), np.isnan(seen))
    assert_allclose(ours_env.obs_rms.var, np.nanvar(np.concatenate(seen).astype(np.float64), axis=0), **EXACT)
    assert np.isnan(np.array(poisoned)[6:, 0, 0]).all()


@pytest.mark.parametrize(
    ("name", "observations"), [("normalize_observations.py", 1005), ("normalize_vec_env.py", 2408)]
)
def test_the_examples_run(name, observations, tmp_path):
    assert printed(name, tmp_path) == (
        f"observations: {observations}\nvariance equal to 12 digits: True\nfrom JSON the same bits: True\n"
    )
