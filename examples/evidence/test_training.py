"""What the scripts on training print, against figures recorded over more seeds than they use.

A recorded figure is the mean and the standard deviation over 30 seeds, or as many as a test says. The same seeds on
another processor round otherwise and so train other networks; where training amplifies the last digit, these differ as
much as those of other seeds. So a script's mean over its own seeds may differ from the recorded one by 4 standard
errors of the difference. Of ratios it is the geometric mean, and the standard deviation of the logarithm.
"""

# ruff: noqa: D103 (a test's name is its docstring)

import math
import re

import pytest

pytestmark = pytest.mark.timeout(4000)  # more than a script may take: conftest.py


def figures(text, label, unit):
    """Mean, least and most on the line that begins with the label."""
    found = re.search(rf"^ *{re.escape(label)}:? ([\d.]+){unit}[^(\n]*\(([\d.]+) to ([\d.]+)", text, re.MULTILINE)
    assert found, label
    return tuple(map(float, found.groups()))


def allowed(deviation, n, of=30):
    return 4 * deviation * math.sqrt(1 / n + 1 / of)


def section(text, title):
    """The lines behind a title that are indented."""
    return re.search(rf"^{re.escape(title)}:.*\n((?:  .*\n)+)", text, re.MULTILINE)[1]


def assert_ratio(text, label, recorded, n=5):
    """Ratios are compared as logarithms."""
    mean, least, most = figures(text, label, " times")
    assert least <= mean <= most
    digit = 0.05 / recorded[0]  # half a step of the last one printed
    assert abs(math.log(mean / recorded[0])) < allowed(recorded[1], n) + digit, label
    return mean


def assert_value(text, label, recorded, n=5, of=30, digit=0.005, unit=""):
    mean, least, most = figures(text, label, unit)
    assert least <= mean <= most
    assert abs(mean - recorded[0]) <= allowed(recorded[1], n, of) + digit, label
    return mean


def test_steps_are_fewer_and_rates_larger_but_not_fourteen_times(printed):
    text = printed("fewer_steps")
    relu, sigmoid = section(text, "ReLU, 10 layers of 64"), section(text, "sigmoid, 3 layers of 100")
    each, same, larger = (
        "fewer steps with BN, each at its best rate",
        "fewer steps with BN, both at the best rate without",
        "larger rates that still train with BN",
    )
    # Five seeds share their best rates, so a figure is one of five together. Recorded are the mean of such figures, for
    # fives drawn from 30 seeds, and sqrt(5) times their standard deviation. Which of two rates is the best for ReLU
    # without batch norm differs from five to five, and with it the gain at the same rate.
    fewer = [assert_ratio(relu, each, (3.29, 0.32)), assert_ratio(sigmoid, each, (5.3, 0.35))]
    assert 1 < min(fewer) < max(fewer) < 14
    assert_ratio(relu, same, (1.44, 0.74))
    assert assert_ratio(sigmoid, same, (5.2, 0.34)) > 2
    assert assert_ratio(relu, larger, (12.2, 0.39)) > 4
    assert assert_ratio(sigmoid, larger, (5.7, 0.34)) > 2
    assert "14 times fewer steps, at 5 times the rate" in text


@pytest.mark.parametrize(
    ("kind", "part", "depth_10"),
    [
        ("without batch norm", (9.3, 1.4), 0),
        ("with batch norm", (60.2, 1.4), 5),
        ("residual, without batch norm", (44.3, 2.7), 4),
        ("residual, with batch norm", (100, 0), 9),
    ],
)
def test_batch_norm_widens_the_range_of_scales(kind, part, depth_10, printed):
    text = printed("initialisation")
    assert_value(text, kind, part, n=3, of=15, digit=0.5, unit=" %")
    scales = re.findall(r"depth (\d+): (\d+) scales", section(text, kind))
    assert [int(depth) for depth, _ in scales] == [2, 5, 10, 20]
    assert abs(int(dict(scales)["10"]) - depth_10) <= 1


@pytest.mark.parametrize("scale", [0.32, 1, 3.2])
def test_gradients_grow_with_batch_norm_as_yang_et_al_say(scale, printed):
    text = printed("initialisation")
    pattern = rf"^{{}} batch norm, scale {scale:g}: .*activations by ([\d.]+), squared gradients by ([\d.]+) "
    activations, gradients = map(float, re.search(pattern.format("with"), text, re.MULTILINE).groups())
    # The seeds agree to 0.01; theirs is for infinite width, ours is 64.
    assert activations == pytest.approx(1, abs=0.02)
    assert gradients == pytest.approx(math.pi / (math.pi - 1), rel=1 / 64)
    # Without, a layer multiplies both by the square of the scale, at large width.
    for factor in map(float, re.search(pattern.format("without"), text, re.MULTILINE).groups()):
        assert factor == pytest.approx(scale**2, rel=0.15)


def numbers(lines, label):
    return [float(x) for x in re.search(rf"^  {label}: (.*)$", lines, re.MULTILINE)[1].split(", ")]


def test_dense_layers_need_larger_batches_than_convolutions(printed):
    text = printed("small_batches")
    sizes = [2, 4, 8, 16, 32, 64]
    assert text.count("test error in % at batches of 2, 4, 8, 16, 32, 64") == 2
    conv, dense = section(text, "convolutions"), section(text, "dense")
    # Means of four seeds, each with the recorded standard deviation; a difference has two such errors.
    allowed = 4 * math.sqrt(2) * 1.3 / math.sqrt(4)
    batch, group = numbers(conv, "batch norm"), numbers(conv, "group norm")
    assert max(batch) - min(batch) < allowed
    assert max(abs(b - g) for b, g in zip(batch, group, strict=True)) < allowed
    assert batch == pytest.approx([6.0, 5.4, 5.7, 5.5, 5.5, 6.3], abs=allowed)
    batch, layer = numbers(dense, "batch norm"), numbers(dense, "layer norm")
    allowed = 4 * math.sqrt(2) * 0.6 / math.sqrt(4)
    assert batch[1:] == pytest.approx([6.3, 4.3, 3.9, 3.8, 3.9], abs=allowed)
    assert batch[0] > 20 > 8 > layer[0]  # 31 to 37 over the seeds
    again = numbers(dense, "batch norm, statistics taken again")
    assert again[0] > 20
    assert again[1:] == pytest.approx(batch[1:], abs=allowed)
    for lines, name, other, deviation in ((conv, "group norm", group, 1.3), (dense, "layer norm", layer, 0.6)):
        slower = numbers(lines, f"{name} at 64 with half the rate")
        assert slower == pytest.approx(other[-1:], abs=4 * math.sqrt(2) * deviation / math.sqrt(4))
    assert max(abs(b - g) for b, g in zip(batch[2:5], layer[2:5], strict=True)) < allowed
    least = [int(re.search(r"least batch within .*: (\d+)", lines)[1]) for lines in (conv, dense)]
    assert all(size in sizes for size in least)
    assert least[0] <= 8
    assert 4 <= least[1] <= 16
    assert least[0] <= least[1]
    worse = [re.search(r"worse at: (.*)", lines)[1] for lines in (conv, dense)]
    assert worse[0] in ("none", "2")
    assert worse[1].startswith("2")


def test_the_advice_of_report_is_what_was_measured(printed):
    text = printed("small_batches")
    for title in ("convolutions", "dense"):
        lines = section(text, title)
        least = int(re.search(r"least batch within .*: (\d+)", lines)[1])
        gap = float(re.search(r"gap .*: ([\d.]+)", lines)[1])
        advised = int(re.search(r"advice of report: batches of (\d+) samples", lines)[1])
        assert least <= 2 * advised <= 4 * least  # the measured one is sure to a factor of 2
        # Of n independent normal values: 1/n from the mean, 1/(2 n) from the standard deviation. The last layer of
        # convolutions has 4 places a sample.
        n = least * {"convolutions": 4, "dense": 1}[title]
        assert gap == pytest.approx(math.sqrt(1.5 / n), rel=0.2)
        assert n >= 8


def test_the_landscape_is_smoother_and_the_shift_is_smaller(printed):
    text = printed("why_it_works")
    recorded = {
        "variation of the loss along the gradient": (27.4, 0.43),
        "change of the gradient along it": (6.8, 0.23),
        "change of the gradient per distance, at most": (1.33, 0.095),
        "change of the gradient per distance, at four steps": (5.1, 0.17),
        "internal covariate shift, distance": (1.31, 0.071),
    }
    found = {label: assert_ratio(text, label, figure) for label, figure in recorded.items()}
    variation, change, _, far, shift = found.values()
    assert min(variation, change, far) > 2 * shift
    without = assert_value(text, "internal covariate shift, cosine without BN", (0.357, 0.105))
    normalized = assert_value(text, "internal covariate shift, cosine with BN", (0.699, 0.027))
    assert without < normalized


def test_noise_behind_batch_norm_moves_distributions_and_training_stands_it_at_the_larger_rate(printed):
    text = printed("why_it_works")
    moves = "the active part moves by"
    jumps = [
        assert_value(text, f"{kind}: {moves}", recorded, digit=0.0005)
        for kind, recorded in (
            ("without BN", (0.2085, 0.0159)),
            ("with BN", (0.0541, 0.0008)),
            ("with BN and noise", (0.1650, 0.0031)),
        )
    ]
    assert jumps[2] > 2 * jumps[1]
    on_the_way = "mean test accuracy on the way"
    # Without batch norm 6 of 30 seeds diverged at the larger rate, and the others lie anywhere from 10 to 63 %.
    recorded = {
        "without BN": ((82.1, 2.6), (36.5, 12.4)),
        "with BN": ((90.5, 1.0), (94.4, 0.6)),
        "with BN and noise": ((83.4, 3.5), (91.9, 1.7)),
    }
    found = {
        kind: [
            assert_value(section(text, kind), f"rate {rate}: {on_the_way}", figure, digit=0.5, unit=" %")
            for rate, figure in zip((0.1, 0.4), two, strict=True)
        ]
        for kind, two in recorded.items()
    }
    # 55 points and 7 points, less 4 standard errors.
    assert found["with BN and noise"][1] > found["without BN"][1] + 30
    assert found["with BN and noise"][0] < found["with BN"][0]
    assert len(re.findall(r"; \d of 5 trainings diverged", text)) == 6
