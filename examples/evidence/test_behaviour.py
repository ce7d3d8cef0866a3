"""What the scripts say is what they printed. Times are not looked at: they belong to the machine."""

# ruff: noqa: D103 (a test's name is its docstring)

import re

import numpy as np
import pytest

pytestmark = pytest.mark.timeout(4000)  # more than a script may take: conftest.py


def figures(text, heading, name):
    """Means and spreads, "mean±spread", in the row of a name below a heading; an array of shape (2, columns)."""
    below = text[text.index(heading) :].splitlines()[1:]
    row = next(line for line in below if re.match(rf"  {re.escape(name)} +-?\d", line))
    return np.array(re.findall(r"(-?[\d.]+)±([\d.]+)", row), float).T


def test_a_sample_has_derivatives_by_others_that_fall_with_the_batch(printed):
    text = printed("coupling")
    mean, spread = figures(text, "derivative by another sample", "times the size")
    sizes = 2 ** np.arange(1, 9)
    assert len(mean) == len(sizes)
    # Spreads over seeds are 0.02 at 16, where pixels constant in a batch weigh in, and less above: five of them.
    np.testing.assert_allclose(mean[sizes >= 16], np.sqrt(2), atol=0.12)
    np.testing.assert_allclose(mean[sizes >= 64], np.sqrt(2), atol=0.03)
    assert (spread[sizes >= 64] < 0.02).all()
    # Printed with four digits behind the point.
    share = figures(text, "derivative by another sample", "batch statistics")[0]
    np.testing.assert_allclose(share, mean / sizes, atol=2e-4)
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
    # Folding is as exact as not folding: 4 to 6 by the rounding, within 0.3 of each other, spreads of 2.3 and less.
    assert 0.5 < folded / plain < 2


def test_running_statistics_that_are_too_quick_or_too_slow_open_a_gap(printed):
    heading = "gap in percentage points"
    for batch, tolerance in ((4, 2.5), (16, 1.2), (64, 1.2)):
        name = f"batches of {batch}"
        last, usual, slow, slowest = figures(printed("train_inference_gap"), heading, name)[0]
        # Over 30 seeds -1.0 at most at 4, a spread of 1.1, and above -0.3, a spread of 0.4: four standard errors of the
        # mean of five, and nearer than what follows.
        assert abs(usual) < tolerance
        assert abs(slow) < tolerance
        # 9 to 11 points with these seeds, which roundings change by 1 point; the spread over 30 seeds is 5.
        assert slowest < -3
        if batch == 4:
            # Over 30 seeds 18.7 points, a spread of 8: four standard errors of the mean of five.
            assert last < -4
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


def test_before_or_after_the_activation_hardly_matters_and_without_rates_are_lost(printed):
    none, before, after = (
        figures(printed("placement"), "normalized before or after", name) for name in ("none", "before", "after")
    )
    # Over 30 seeds they are 0.006 apart at most at the first two rates, with spreads of 0.009 and less: four standard
    # errors of a difference of means of five. At the last rate the spread is 0.022, with some roundings 0.05.
    np.testing.assert_allclose(before[0, :2], after[0, :2], atol=0.027)
    assert none[0, 0] == pytest.approx(before[0, 0], abs=0.027)
    # Diverged counts as 0.1; a network on its way there has more: over 30 seeds 0.12, a spread of 0.08.
    assert (none[0, 1:] < 0.4).all()
    assert (before[0] > 0.85).all()


def test_a_normalized_output_layer_costs_loss_and_accuracy_with_few_samples(printed):
    alone, normalized = (
        figures(printed("placement"), "output layer, test loss", name)[0] for name in ("left alone", "normalized")
    )
    # The gap is 0.20, 0.12 and 0.02; spreads are 0.03, 0.014 and 0.02: the last is none.
    assert (normalized - alone > [0.1, 0.06, -0.05]).all()
    assert normalized[2] - alone[2] < 0.08
    alone, normalized = (
        figures(printed("placement"), "output layer, test accuracy", name)[0] for name in ("left alone", "normalized")
    )
    # 0.044, 0.02 and 0.000; spreads are 0.013 and less.
    assert alone[0] - normalized[0] > 0.015
    assert abs(alone[2] - normalized[2]) < 0.025


def test_only_pre_norm_trains_32_blocks_like_4(printed):
    kinds = ("pre-norm", "post-norm", "no residual")
    ratio = {kind: figures(printed("placement"), "gradient of the first block", kind)[0] for kind in kinds}
    # 4, 10 and 270, spreads of 15 % and less.
    assert ratio["pre-norm"][-1] < 6
    assert 6 < ratio["post-norm"][-1] < 20 < 100 < ratio["no residual"][-1]
    accuracy = {kind: figures(printed("placement"), "accuracy after 100 steps", kind)[0] for kind in kinds}
    # 0.94, and by the rounding 0.71 to 0.78 and 0.24 to 0.31; spreads over three seeds of 0.005, 0.04 and 0.063 at
    # most. At 4 blocks: 0.007 and less.
    assert np.ptp([values[0] for values in accuracy.values()]) < 0.03
    assert accuracy["pre-norm"][-1] > accuracy["pre-norm"][0] - 0.04
    assert accuracy["post-norm"][-1] < accuracy["pre-norm"][-1] - 0.1
    assert accuracy["no residual"][-1] < 0.5


def test_dropout_shifts_the_variance_that_later_normalizations_see(printed):
    heading = "variance at inference / running variance"
    shift = {
        name: figures(printed("dropout"), heading, name)[0]
        for name in ("BN", "BN and dropout", "BN, dropout at the end")
    }
    # Spreads over seeds are 0.01: more than five of them.
    for name in ("BN", "BN, dropout at the end"):
        np.testing.assert_allclose(shift[name], 1.05, atol=0.08)
    np.testing.assert_allclose(shift["BN and dropout"], [1.04, 0.66, 0.54], atol=0.08)


def test_dropout_costs_accuracy_that_statistics_without_it_do_not_bring_back(printed):
    names = ("neither", "BN", "dropout", "BN and dropout", "BN, dropout at the end")
    many, few = np.array([figures(printed("dropout"), "test accuracy", name)[0] for name in names]).T
    _, bn, dropout, both, at_the_end = many
    # 2.2 points, spreads of 0.6 over five seeds; four standard errors of the difference leave 0.6.
    assert both < bn - 0.006
    assert dropout < bn - 0.01
    # Within three spreads: not worse than dropout alone, and nothing lost at the end.
    assert both > dropout - 0.018
    assert at_the_end == pytest.approx(bn, abs=0.015)
    mended = figures(printed("dropout"), "test accuracy", "BN and dropout, statistics without dropout")[0][0]
    assert mended == pytest.approx(both, abs=0.018)
    # With 150 samples all within 1.4 points, spreads of 2.2 and less.
    assert np.ptp(few) < 0.044


def by_way(text, heading):
    """Means of the three ways to take statistics, below a heading."""
    return [figures(text, heading, name)[0] for name in ("PyTorch", "one pass", "layer by layer")]


def test_update_bn_gains_nothing_of_shuffled_rows_or_with_convolutions(printed):
    text = printed("update_bn")
    for name in ("dense, shuffled", "dense, by brightness", "convolutions, by class"):
        # Over 30 seeds 0.06 points at most, a spread of 0.27: four standard errors of the mean of ten, and of 30.
        np.testing.assert_allclose(by_way(text, f"{name}, points of accuracy lost"), 0, atol=0.45)
        # From 16 rows on 1.02 at most, spreads of 0.02.
        np.testing.assert_allclose([v[1:] for v in by_way(text, f"{name}, times the loss")], 1, atol=0.05)
    np.testing.assert_allclose(by_way(text, "convolutions, by class, times the loss"), 1, atol=0.02)
    np.testing.assert_allclose(by_way(text, "convolutions, by class, variance found"), 1, atol=0.04)
    right = float(re.search(r"table, one batch of all rows: error ([\d.]+)±", text)[1])
    # All within 0.01 of each other, spreads of 0.05 that the ways share.
    np.testing.assert_allclose(by_way(text, "table, shuffled, error"), right, atol=0.03)


def test_update_bn_of_sorted_rows_by_pytorch_costs_accuracy_and_loss(printed):
    text = printed("update_bn")
    accuracy = float(re.search(r"^dense, one batch of all rows: accuracy ([\d.]+)±", text, re.MULTILINE)[1])
    assert accuracy == pytest.approx(98.3, abs=0.7)
    # Over 30 seeds 1.5±0.9, 1.8±0.9 and 1.2±0.7 points, and 2.8±0.7, 3.2±0.8, 2.4±0.5 and 1.35±0.17 times: less four
    # standard errors of the mean of ten. One pass: 0.2±0.3 points and 1.33±0.11 times at most.
    pytorch, one_pass, _ = by_way(text, "dense, by class, points of accuracy lost")
    assert (pytorch[:3] > [0.4, 0.6, 0.2]).all()
    assert (pytorch[:3] < [2.7, 3, 2.2]).all()
    assert abs(pytorch[3]) < 0.65
    assert (np.abs(one_pass) < 0.65).all()
    assert (one_pass[:3] < pytorch[:3]).all()
    pytorch, one_pass, _ = by_way(text, "dense, by class, times the loss")
    assert (pytorch > [1.9, 2.1, 1.6, 1.1]).all()
    assert (pytorch < [3.7, 4.3, 3.1, 1.6]).all()
    assert (one_pass > 1.05).all()
    assert (one_pass < 1.5).all()
    assert (one_pass[:3] < pytorch[:3] - 0.3).all()


def test_update_bn_by_pytorch_loses_a_table_that_is_sorted_by_a_column(printed):
    text = printed("update_bn")
    heading = "column of the body mass index"
    below = text[text.index(heading) :].splitlines()[1:4]
    share = {line[2:16].strip(): [float(n) for n in line[16:].split()] for line in below}
    # Nothing is trained here.
    assert share == {
        "PyTorch": pytest.approx([0.0008, 0.0092, 0.0619, 0.3559], abs=1e-4),
        "one pass": [1] * 4,
        "layer by layer": [1] * 4,
    }
    right = float(re.search(r"table, one batch of all rows: error ([\d.]+)±", text)[1])
    assert right == pytest.approx(0.54, abs=0.08)
    pytorch, one_pass, layers = by_way(text, "table, by body mass index, error")
    # Over 30 seeds 55±35, 8.1±4.3 and 0.80±0.14, and by age 9±8 and 1.9±1.2; the smallest of all 30 are 8.4 and 2.7.
    assert 12 < pytorch[0] < 110
    assert 2.7 < pytorch[1] < 15
    assert pytorch[3] > right + 0.08
    # 0.02 at most, a spread of 0.02 against the right ones.
    np.testing.assert_allclose(one_pass, right, atol=0.06)
    np.testing.assert_allclose(layers, right, atol=0.011)
    # 0.55, 0.58, 0.58 and 0.74, spreads of 0.1 and less, which the right ones share.
    pytorch, _, _ = by_way(text, "table, by target, error")
    np.testing.assert_allclose(pytorch[:3], right, atol=0.13)
    assert pytorch[3] > right + 0.06
    pytorch, one_pass, layers = by_way(text, "table, by age, error")
    assert pytorch[0] > 2
    assert pytorch[1] > right + 0.2
    np.testing.assert_allclose(one_pass, right, atol=0.06)
    np.testing.assert_allclose(layers, right, atol=0.011)


def test_update_bn_in_one_pass_is_exact_for_the_first_layer_only(printed):
    text = printed("update_bn")
    # Spreads over seeds are 0.03 and less: four standard errors of the mean of ten.
    for order, by_pytorch, behind in (
        ("shuffled", (1, 1.05, 0.96), (0.79, 0.72)),
        ("by class", (0.41, 0.79, 0.83), 0.6),
    ):
        pytorch, one_pass, _ = by_way(text, f"dense, {order}, variance found")
        np.testing.assert_allclose(pytorch, by_pytorch, atol=0.05)
        assert one_pass[0] == 1
        np.testing.assert_allclose(one_pass[1:], behind, atol=0.05)
        if order == "shuffled":
            np.testing.assert_allclose(pytorch[1:] / one_pass[1:], 4 / 3, atol=0.05)
    pytorch, one_pass, _ = by_way(text, "dense, shuffled, times the loss")
    # 1.03 and 1.15, spreads of 0.06.
    assert one_pass[0] == pytest.approx(1.15, abs=0.08)
    assert one_pass[0] > pytorch[0]


def test_update_bn_layer_by_layer_is_right_in_every_order_and_size(printed):
    text = printed("update_bn")
    names = ("dense, shuffled", "dense, by brightness", "dense, by class", "convolutions, by class")
    for name in names:
        # One digit of 599 in one of ten seeds, twice; no seed's statistics differ by more than 1/1198 and rounding.
        np.testing.assert_allclose(by_way(text, f"{name}, points of accuracy lost")[2], 0, atol=0.04)
        np.testing.assert_allclose(by_way(text, f"{name}, times the loss")[2], 1, atol=0.011)
        np.testing.assert_allclose(by_way(text, f"{name}, variance found")[2], 1, atol=0.002)
    off = float(re.search(r"all orders and sizes: off by ([\d.e-]+) at most", text)[1])
    assert off == pytest.approx(1 / 1198, rel=0.15)
    assert re.search(r"^0 of 30 trainings diverged$", text, re.MULTILINE)
