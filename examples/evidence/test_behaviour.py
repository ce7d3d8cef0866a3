"""What the scripts say is what they printed. Times are not looked at: they belong to the machine."""

# ruff: noqa: D103 (a test's name is its docstring)

import re

import numpy as np
import pytest


def figures(text, heading, name):
    """Means and spreads, "mean±spread", in the row of a name below a heading; an array of shape (2, columns)."""
    below = text[text.index(heading) :].splitlines()[1:]
    row = next(line for line in below if line.startswith(f"  {name} "))
    return np.array(re.findall(r"(-?[\d.]+)±([\d.]+)", row), float).T


def test_a_sample_has_derivatives_by_others_that_fall_with_the_batch(printed):
    text = printed("coupling")
    mean, spread = figures(text, "derivative by another sample", "times the size")
    sizes = 2 ** np.arange(1, 9)
    assert len(mean) == len(sizes)
    # Spread over seeds at 16 and more: at most 0.03, and the formula's own limit is for many samples.
    np.testing.assert_allclose(mean[sizes >= 16], np.sqrt(2), atol=0.1)
    assert mean[-1] == pytest.approx(np.sqrt(2), abs=0.02)
    assert (spread[sizes >= 16] < 0.05).all()
    assert re.search(r"frozen statistics: largest 0\.0$", text, re.MULTILINE)


def test_batch_mates_change_labels_only_by_batch_statistics(printed):
    heading = "share of digits whose label depends on the batch"
    mean, _ = figures(printed("coupling"), heading, "batch statistics")
    # 82 % at 4, 22 % at 16, 2 % at 256; spreads of 3 % and less: five of them.
    assert mean[0] > 0.65
    assert 0.12 < mean[2] < 0.32
    assert 0 < mean[-1] < 0.08
    assert (np.diff(mean) < 0).all()
    assert (figures(printed("coupling"), heading, "running statistics") == 0).all()


def test_momentum_misses_what_lies_between_batches_and_halflife_does_not(printed):
    heading, sizes = "share of the variance", np.array([2, 4, 8, 16, 32])
    # Spreads over seeds are 0.01: five of them.
    for name, expected in (("momentum", 1 - 1 / sizes), ("momentum, ddof=1", 1), ("halflife", 1)):
        mean, spread = figures(printed("drifting_stream"), heading, name)
        np.testing.assert_allclose(mean, np.broadcast_to(expected, 5), atol=0.05)
        assert (spread < 0.02).all()
    np.testing.assert_array_equal(figures(printed("drifting_stream"), heading, "cumulative"), [[1] * 5, [0] * 5])


def test_what_forgets_follows_sensors_that_drift(printed):
    found = {
        name: figures(printed("drifting_stream"), "sensors drift", name)
        for name in ("never learns", "cumulative", "momentum", "momentum, ddof=1", "halflife")
    }
    forgetting = [found[name] for name in ("momentum", "momentum, ddof=1", "halflife")]
    accuracy = np.array([f[0, 0] for f in forgetting])
    # Five seeds: standard errors of 0.02 with forgetting, and of 0.05 without. Four of their sum is the gap of 0.21.
    assert accuracy.min() > found["never learns"][0, 0] + 0.1
    assert accuracy.min() > found["cumulative"][0, 0] + 0.05
    assert np.ptp(accuracy) < 0.02
    # Spreads over seeds are 0.03 and less.
    for values, expected in zip(forgetting, (0.98, 1.13, 1.37), strict=True):
        assert values[0, 1] == pytest.approx(expected, abs=0.1)


def test_writers_differ_too_little_for_forgetting_to_help(printed):
    heading = "digits, learned online"
    cumulative, _ = figures(printed("drifting_stream"), heading, "cumulative")
    for name in ("momentum", "momentum, ddof=1", "halflife"):
        # Three times the spread over seeds of the worst, 0.006.
        np.testing.assert_allclose(figures(printed("drifting_stream"), heading, name)[0], cumulative, atol=0.018)


def test_a_folded_network_gives_the_same_outputs_in_fewer_passes(printed):
    text = printed("folding")
    passes = {
        way: int(n)
        for way, n in re.findall(
            r'([\w ()=",]+?): (\d+)(?:, |$)', text.splitlines()[0].removeprefix("passes over the data: ")
        )
    }
    assert passes["folded, ReLU"] == passes["never had one, ReLU"] == 6
    assert passes["folded, ReLU"] < passes["batch_norm, ReLU"] < passes["NumPy formula, ReLU"]
    apart, plain, folded = (
        float(re.search(rf"{name}: ([\d.]+)±", text)[1])
        for name in ("folded against not folded", "error of not folded", "error of folded")
    )
    # Six passes that round, sums of up to 289 products: some eps. Spreads over seeds are 2.5: four of them.
    assert 0 < apart < 20
    # Folding is as exact as not folding: 6.1 against 6.3, spreads of 1.4 over five seeds.
    assert 0.5 < folded / plain < 2


def test_running_statistics_that_are_too_quick_or_too_slow_open_a_gap(printed):
    heading = "gap in percentage points"
    for batch in (4, 16, 64):
        (last, usual, slow, slowest), spread = figures(printed("train_inference_gap"), heading, f"batches of {batch}")
        # Five standard errors of the mean of five seeds, and half a sample of 599.
        assert abs(usual) < 5 * spread[1] / 5**0.5 + 0.1
        assert abs(slow) < 5 * spread[2] / 5**0.5 + 0.1
        # 9 to 11 points with spreads of 6: three standard errors from the mean leave 1.
        assert slowest < -1
        if batch == 4:
            # 19 points, a spread of 4.5: four standard errors.
            assert last < -11
    assert "after 300 steps: 0.00 0.00 0.05 0.74" in printed("train_inference_gap")


def test_forgetting_the_switch_costs_more_the_smaller_and_the_more_sorted_batches_are(printed):
    text = printed("train_inference_gap")
    right, spread = (float(n) for n in re.search(r"running statistics: ([\d.]+)±([\d.]+)", text).groups())
    shuffled, by_class = (figures(text, "statistics of test batches", name)[0] for name in ("shuffled", "sorted"))
    # Spreads over seeds are 0.03 at 2 and 0.016 and less elsewhere: three of them.
    assert shuffled[0] == pytest.approx(0.48, abs=0.09)
    assert shuffled[-1] == pytest.approx(right, abs=3 * spread)
    assert (np.diff(shuffled) > -0.01).all()
    assert (by_class[:3] < 0.2).all()
    assert by_class[5] < 0.5 < 0.8 < by_class[-1] < right - 0.08
    assert "batches of 1: batch_norm_forward needs at least 2 values per channel, got 1" in text
