"""Normalized observations of reinforcement learning: the wrappers of gymnasium and Stable-Baselines3, and of examples/.

    pip install "gymnasium[box2d]" "stable-baselines3[extra]" pytest && pip install .
    python comparisons/reinforcement.py tests                      # theirs, from Stable-Baselines3's sdist: minutes
    python comparisons/reinforcement.py tests --gymnasium FOLDER   # and gymnasium's, from a clone: its sdist has none
    python comparisons/reinforcement.py errors                     # of the statistics
    python comparisons/reinforcement.py steps                      # microseconds a step, on an idle machine
    python comparisons/reinforcement.py returns --seeds 5          # of PPO, theirs and ours: a quarter of an hour

`tests` ends with exit status 1 if a test fails with ours that does not fail without.
"""

import argparse
import collections
import functools
import os
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile
import types

import gymnasium
import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common import running_mean_std, vec_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import vec_normalize

from bncpu.bench import interleaved, machine

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "examples"))
from normalize_observations import NormalizeObservation
from normalize_vec_env import ExactVecNormalize, RunningStatistics
from their_tests import failures, outcomes

THEIRS, THEIR_STATISTICS = vec_normalize.VecNormalize, running_mean_std.RunningMeanStd
GYMNASIUMS = gymnasium.wrappers.NormalizeObservation

# The settings of RL Zoo for these tasks, but without gSDE, and at a constant learning rate and clip range.
TASKS = {
    "CartPole-v1": dict(
        n_envs=8, n_steps=32, batch_size=256, gamma=0.98, gae_lambda=0.8, learning_rate=1e-3, n_epochs=20
    ),
    "Pendulum-v1": dict(n_envs=4, n_steps=1024, gamma=0.9, learning_rate=1e-3),
}


def pytest_configure(config):
    """As a plugin of pytest: ours in the place of theirs."""
    gymnasium.wrappers.NormalizeObservation = NormalizeObservation
    vec_env.VecNormalize = vec_normalize.VecNormalize = ExactVecNormalize
    running_mean_std.RunningMeanStd = vec_normalize.RunningMeanStd = RunningStatistics


def compare_tests(asked):
    """Run their tests without ours and with it."""
    here = str(pathlib.Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *["-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d"], folder]
        subprocess.run([*command, f"stable-baselines3=={stable_baselines3.__version__}"], check=True)
        with tarfile.open(next(pathlib.Path(folder).glob("*.tar.gz"))) as sdist:
            sdist.extractall(folder, filter="data")
        root = next(pathlib.Path(folder).glob("*/tests"))
        mentioning = [p for p in sorted(root.glob("test_*.py")) if "VecNormalize" in p.read_text()]
        suites = {"Stable-Baselines3": (root.parent, mentioning)}
        if asked.gymnasium:
            root = pathlib.Path(asked.gymnasium).resolve()
            suites["gymnasium"] = (root, [root / "tests/wrappers/test_normalize_observation.py"])
        worse = False
        for suite, (root, files) in suites.items():
            without = outcomes(root, map(str, files), "0", False)
            with_ours = outcomes(root, map(str, files), "0", False, "-p", "reinforcement")
            for title, found in (("without", without), ("with", with_ours)):
                counts = collections.Counter(found.values())
                print(f"{suite} {title} ours: " + ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())))
            only = failures(with_ours) - failures(without)
            for name in sorted(only):
                print(f"  only with ours: {name}")
            worse |= bool(only) or len(without) != len(with_ours) or not without
    sys.exit(worse)


def compare_errors(asked):
    """Print the largest relative error of the variance after a stream of float32, against longdouble."""
    gymnasiums, theirs = gymnasium.wrappers.utils.RunningMeanStd, THEIR_STATISTICS
    makers = {
        "gymnasium": lambda shape: gymnasiums(shape=shape, dtype=np.float32),
        "without its prior": lambda shape: gymnasiums(0.0, shape=shape, dtype=np.float32),
        "Stable-Baselines3": lambda shape: theirs(shape=shape),
        "without its": lambda shape: theirs(0.0, shape=shape),
        "ours": lambda shape: RunningStatistics(shape=shape),
    }
    for steps, mean in ((100, 0), (100, 1000), (100_000, 0), (100_000, 1000)):
        stream = np.random.default_rng(0).standard_normal((steps, 8, 4), dtype=np.float32) + np.float32(mean)
        exact = np.var(stream.reshape(-1, 4).astype(np.longdouble), axis=0)
        errors = []
        for name, made in makers.items():
            learned = made((4,))
            for batch in stream:
                learned.update(batch)
            errors.append(f"{name} {float(np.max(abs(learned.var / exact - 1))):.0e}")
        print(f"{steps} steps of 8 environments, mean {mean}: " + ", ".join(errors))


def still(obs):
    """A vector of environments whose observations are there already, so that what takes time is the wrapper."""
    n_envs, n_features = obs.shape
    space = gymnasium.spaces.Box(-np.inf, np.inf, (n_features,), np.float32)
    step = obs, np.ones(n_envs), np.zeros(n_envs, bool), [{} for _ in range(n_envs)]
    return types.SimpleNamespace(
        num_envs=n_envs,
        observation_space=space,
        action_space=space,
        render_mode=None,
        get_attr=lambda *_: [None] * n_envs,
        reset=lambda: obs,
        step_wait=lambda: step,
    )


def compare_steps(asked):
    """Print microseconds a step: of `step_wait` of VecNormalize, rewards included, and of NormalizeObservation."""
    print(machine(1)["processor"])
    for n_envs in (1, 8, 64):
        for n_features in (3, 17, 376):
            obs = np.random.default_rng(0).standard_normal((n_envs, n_features), dtype=np.float32)
            for training in (True, False):
                calls = {}
                for name, made in (("theirs", THEIRS), ("ours", ExactVecNormalize)):
                    env = made(still(obs))
                    env.reset()
                    env.step_wait()
                    env.training = training
                    calls[name] = env.step_wait
                told(f"VecNormalize, {n_envs} x {n_features}", training, calls, asked.seconds)
                if n_envs == 1:
                    calls = {}
                    for name, made in (("theirs", GYMNASIUMS), ("ours", NormalizeObservation)):
                        env = gymnasium.Env()
                        env.observation_space = env.action_space = still(obs).observation_space
                        env = made(env)
                        env.observation(obs[0])
                        env.update_running_mean = training
                        calls[name] = functools.partial(env.observation, obs[0])
                    told(f"NormalizeObservation, {n_features}", training, calls, asked.seconds)


def told(what, training, calls, seconds):
    """Let both take turns, and print a line."""
    taken = interleaved(calls, seconds, short=True)
    theirs, ours = (float(np.nanmedian(taken[name])) * 1e6 for name in ("theirs", "ours"))
    ratio = float(np.nanmedian(taken["theirs"] / taken["ours"]))
    how = "learning" if training else "frozen"
    print(f"{what + ', ' + how:36} theirs {theirs:6.1f} us, ours {ours:6.1f} us, ratio {ratio:.1f}", flush=True)


def compare_returns(asked):
    """Train PPO with their normalizer and with ours, from equal seeds, and print mean returns."""
    torch.set_num_threads(1)
    for task in asked.tasks:
        found = {"theirs": [], "ours": []}
        for seed in range(asked.seeds):
            for name, normalizer in (("theirs", THEIRS), ("ours", ExactVecNormalize)):
                found[name].append(returned(task, normalizer, seed, asked.steps))
                print("{}, seed {}, {}: {:.1f} in training, {:.1f} after".format(task, seed, name, *found[name][-1]))
        for name, got in found.items():
            told = (f"{statistics.mean(some):.1f} +- {statistics.stdev(some):.1f}" for some in zip(*got, strict=True))
            print("{}, {}: {} in training, {} after".format(task, name, *told), flush=True)


def returned(task, normalizer, seed, steps):
    """Mean returns of the episodes of training, and of 20 after it with frozen statistics."""
    settings = dict(TASKS[task])
    env = normalizer(make_vec_env(task, settings.pop("n_envs"), seed=seed), gamma=settings["gamma"])
    model = stable_baselines3.PPO("MlpPolicy", env, seed=seed, device="cpu", **settings).learn(steps)
    trained = np.concatenate(env.env_method("get_episode_rewards")).mean()
    evaluated = normalizer(make_vec_env(task, seed=1000 + seed), training=False, norm_reward=False)
    vec_env.sync_envs_normalization(env, evaluated)
    return trained, evaluate_policy(model, evaluated, n_eval_episodes=20)[0]


def main():
    """Do what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    tests = commands.add_parser("tests")
    tests.add_argument("--gymnasium", metavar="FOLDER", help="a clone of gymnasium's repository")
    tests.set_defaults(run=compare_tests)
    commands.add_parser("errors").set_defaults(run=compare_errors)
    steps = commands.add_parser("steps")
    steps.add_argument("--seconds", type=float, default=1, help="for each line (1)")
    steps.set_defaults(run=compare_steps)
    returns = commands.add_parser("returns")
    returns.add_argument("--seeds", type=int, default=5, help="how many, at least 2 (5)")
    returns.add_argument("--steps", type=int, default=50_000, help="of training (50,000)")
    returns.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS, help="all by default")
    returns.set_defaults(run=compare_returns)
    asked = parser.parse_args()
    asked.run(asked)


if __name__ == "__main__":
    main()
