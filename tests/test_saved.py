"""What a forward pass leaves for its backward pass: kept by copies, a pair to who unpacks it, and a guard."""

import copy
import itertools
import pickle

import numpy as np
import pytest
from arrays import normal, same_bits

import bncpu
from bncpu import (
    SavedStatistics,
    batch_norm,
    batch_norm_backward,
    batch_norm_backward_frozen,
    batch_norm_backward_sums,
    batch_norm_forward,
    batch_norm_moments,
    merge,
)
from bncpu.moments import inverse_std


def test_saved_statistics_are_a_pair_to_who_unpacks_them():
    _, saved = batch_norm_forward(normal(51, (7, 3), mean=1e9))
    mean, invstd = saved
    assert mean is saved.mean is saved[0]
    assert invstd is saved.invstd is saved[-1]
    assert saved[:2] == (mean, invstd)
    assert len(saved) == 2
    by_hand = SavedStatistics(mean=mean.copy(), invstd=invstd.copy())
    assert by_hand == saved
    assert SavedStatistics(mean, invstd + 1) != saved
    assert saved != (mean, invstd)
    assert by_hand.mean_lo == 0
    assert by_hand.count is by_hand.kind is by_hand.call is None


COPIES = {
    "pickle": lambda saved: pickle.loads(pickle.dumps(saved)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "_replace": lambda saved: saved._replace(mean=saved.mean),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_of_saved_statistics_keep_every_field(copied):
    x = normal(51, (7, 3, 2), mean=1e9)
    _, saved = batch_norm_forward(x, np.ones(3), activation="relu")
    assert np.any(saved.mean_lo)
    assert (saved.count, saved.kind, saved.call.activation) == (14, "training", "relu")
    other = copied(saved)
    assert type(other) is SavedStatistics
    for name in ("mean", "invstd", "mean_lo", "count", "kind", "call"):
        np.testing.assert_array_equal(getattr(other, name), getattr(saved, name))
    with pytest.raises(ValueError, match="activation must be that of the forward pass"):
        batch_norm_backward(x, x, other, np.ones(3))


def test_fields_of_saved_statistics_are_not_assigned():
    with pytest.raises(AttributeError):
        SavedStatistics([0.0], [1.0]).mean_lo = 0.5


def test_a_low_part_given_as_a_number_counts():
    x, dy = normal(62, (7, 3)), normal(63, (7, 3))
    single = SavedStatistics(np.zeros(3), np.ones(3), 0.25)
    for function in (batch_norm_backward, batch_norm_backward_frozen):
        expected = function(dy, x, single._replace(mean_lo=np.full(3, 0.25)))
        assert all(map(same_bits, function(dy, x, single), expected))


@pytest.mark.parametrize("lo", [None, "abc", np.zeros(5), np.zeros(3) * 1j])
def test_a_low_part_that_does_not_fit_is_refused_by_name(lo):
    saved = SavedStatistics(np.zeros(3), np.ones(3), lo)
    with pytest.raises((TypeError, ValueError), match="mean_lo must"):
        batch_norm_backward(np.zeros((4, 3)), np.zeros((4, 3)), saved)


def test_frozen_statistics_are_those_of_the_kernels_to_the_bit():
    var = np.concatenate([10.0 ** np.arange(-320, 309), [0.0, np.inf, np.nan], normal(64, 50) ** 2])
    for eps in (0.0, 1e-5, 1):
        saved = SavedStatistics.from_variance(np.zeros(len(var)), var, eps=eps)
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(saved.invstd, inverse_std(var, eps))
        assert (saved.kind, saved.count) == ("frozen", None)


def test_a_negative_variance_is_refused():
    with pytest.raises(ValueError, match=r"^var must not be negative, got -1\.0$"):
        SavedStatistics.from_variance([0.0, 1.0], [4.0, -1.0])
    mean, var = np.zeros(2), np.array([1.0, -50.0])
    with pytest.raises(ValueError, match=r"^running_var must not be negative, got -50\.0$"):
        batch_norm_forward(normal(51, (9, 2)), running_mean=mean, running_var=var)
    assert mean.tolist() == [0, 0] and var.tolist() == [1, -50]


def test_statistics_from_a_variance_give_the_gradient_of_inference():
    x, dy = normal(52, (9, 2)), normal(53, (9, 2))
    saved = SavedStatistics.from_variance([1.0, 2.0], [4.0, 0.0], eps=0)
    np.testing.assert_array_equal(saved.invstd, [0.5, 0.0])
    y = batch_norm(x, [1.0, 2.0], [4.0, 0.0], eps=0, activation="relu", beta=[0.1, 0.1])
    dx, _, _ = batch_norm_backward_frozen(dy, x, saved, beta=[0.1, 0.1], activation="relu")
    np.testing.assert_array_equal(dx, np.where(y > 0, dy, 0) * [0.5, 0.0])


@pytest.mark.parametrize("forgotten", ["gamma", "beta", "activation", "residual", "channel_axis"])
def test_a_backward_pass_that_forgets_an_argument_of_the_forward_pass_is_refused(forgotten):
    """The gradients would be wrong: without beta even by little, while beta is small."""
    x = normal(55, (6, 6, 4), dtype=np.float32)
    backward = dict(gamma=np.ones(6), beta=np.zeros(6), activation="relu", residual=x, channel_axis=0)
    cases = [(batch_norm_forward, (batch_norm_backward, batch_norm_backward_frozen, batch_norm_backward_sums), ())]
    cases += [(bncpu.group_norm_forward, (bncpu.group_norm_backward,), (2,))]
    cases += [(bncpu.layer_norm_forward, (bncpu.layer_norm_backward,), (6,))]
    for forward, functions, arguments in cases:
        _, saved = forward(x, *arguments, **backward)
        rest = {name: value for name, value in backward.items() if name != forgotten}
        for function in functions:
            some = saved._replace(kind="frozen") if function is batch_norm_backward_frozen else saved
            function(x, x, some, **backward)
            function(x, x, pickle.loads(pickle.dumps(some)), **backward)
            with pytest.raises(ValueError, match=f"^{forgotten} must be .*forward pass that made saved"):
                function(x, x, some, **rest)
            function(x, x, SavedStatistics(*saved), **backward)


# norm -> its geometry, and the numbers of values in gamma and beta, for x of shape (6, 4, 3)
NORMS = {"batch": ((), 4), "instance": ((), 4), "group": ((2,), 4), "layer": ((3,), 3), "rms": ((3,), 3)}
FUNCTIONS = [(norm, f"{norm}_norm_backward") for norm in NORMS]
FUNCTIONS += [("batch", "batch_norm_backward_sums"), ("batch", "batch_norm_backward_frozen")]


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(("norm", "name"), FUNCTIONS, ids=lambda v: v)
def test_a_backward_pass_has_the_arguments_of_its_forward_pass_or_is_refused(norm, name, activation):
    """Every subset of gamma, beta and residual against every other."""
    geometry, n = NORMS[norm]
    x, dy, backward = normal(68, (6, 4, 3)), normal(69, (6, 4, 3)), getattr(bncpu, name)
    values = {"gamma": np.full(n, 2.0), "beta": np.ones(n), "residual": normal(70, x.shape)}
    if norm == "rms":
        del values["beta"]
    subsets = [set(some) for k in range(len(values) + 1) for some in itertools.combinations(values, k)]
    needed = set(values) if activation else {"gamma"}
    if not activation and name.endswith("sums"):
        subsets, needed = subsets[:1], set()  # of dy and x_hat: nothing else has an effect
    for had, has in itertools.product(subsets, subsets):
        given, now = ({name: values[name] for name in some} for some in (had, has))
        _, saved = getattr(bncpu, f"{norm}_norm_forward")(x, *geometry, activation=activation, **given)
        saved = saved._replace(kind="frozen") if name.endswith("frozen") else saved
        more, forgotten = has - had, (had - has) & needed
        if not more and not forgotten:
            backward(dy, x, saved, activation=activation, **now)
            continue
        with pytest.raises(ValueError, match=r"^\w+ must be (None|given), as in the forward pass") as caught:
            backward(dy, x, saved, activation=activation, **now)
        assert str(caught.value).split()[0] in (more if "None, as" in str(caught.value) else forgotten)
        backward(dy, x, SavedStatistics(*saved), activation=activation, **now)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(("norm", "name"), FUNCTIONS, ids=lambda v: v)
def test_constants_and_statistics_of_a_batch_have_backward_passes_of_their_own(norm, name, activation):
    x, frozen = normal(71, (6, 4, 3)), name.endswith("frozen")
    _, saved = getattr(bncpu, f"{norm}_norm_forward")(x, *NORMS[norm][0])
    with np.errstate(divide="ignore"):
        constants = SavedStatistics.from_variance(0 if norm == "rms" else saved.mean, saved.invstd**-2, eps=0)
    constants = constants._replace(mean=saved.mean)
    right, wrong = (constants, saved) if frozen else (saved, constants)
    getattr(bncpu, name)(x, x, right._replace(call=None), activation=activation)
    got, other = (("training", "batch_norm_backward"), ("frozen", "batch_norm_backward_frozen"))[not frozen]
    message = rf"^saved must be of kind .* there is {other}\); got one of kind '{got}'$"
    for some in (wrong, copy.deepcopy(wrong), saved._replace(kind=got), saved._replace(kind=got, call=None)):
        with pytest.raises(ValueError, match=message):
            getattr(bncpu, name)(x, x, some, activation=activation)
    getattr(bncpu, name)(x, x, SavedStatistics(*saved), activation=activation)


def test_without_relu_a_backward_pass_needs_only_gamma():
    x = normal(56, (6, 3))
    _, saved = batch_norm_forward(x, np.ones(3), np.ones(3), residual=x)
    batch_norm_backward(x, x, saved, np.ones(3))
    batch_norm_backward_sums(x, x, saved)
    with pytest.raises(ValueError, match="gamma must be given"):
        batch_norm_backward(x, x, saved)


@pytest.mark.parametrize(
    ("norm", "arguments", "count"), [("batch", (), 20), ("instance", (), 5), ("group", (2,), 15), ("layer", (5,), 5),
                                     ("layer", ((6, 5),), 30), ("rms", (5,), 5)],
)  # fmt: skip
def test_a_backward_pass_over_another_number_of_values_is_refused(norm, arguments, count):
    x = normal(65, (4, 6, 5))
    forward, backward = (getattr(bncpu, f"{norm}_norm_{name}") for name in ("forward", "backward"))
    _, saved = forward(x, *arguments)
    assert (saved.count, saved.kind) == (count, "training")
    backward(x, x, saved)
    for other in (x[:, :, :4], np.concatenate([x, x], axis=-1)):
        with pytest.raises(ValueError, match=rf"^saved must be of the forward pass over x, .*; got one over {count}$"):
            backward(other, other, saved)


def test_a_part_of_a_batch_needs_the_sums_of_all():
    x = normal(66, (6, 3))
    whole = batch_norm_moments(x)
    _, saved = batch_norm_forward(x[:2], moments=whole)
    np.testing.assert_array_equal(saved.count, [6, 6, 6])
    sums = merge(batch_norm_backward_sums(x[:2], x[:2], saved), batch_norm_backward_sums(x[2:], x[2:], saved))
    batch_norm_backward(x[:2], x[:2], saved, sums=sums)
    batch_norm_backward(x[:2], x[:2], SavedStatistics(*saved), sums=sums)
    with pytest.raises(ValueError, match=r"^saved must be of the forward pass over x, of 2 values .* got one over 6$"):
        batch_norm_backward(x[:2], x[:2], saved)
    _, alone = batch_norm_forward(x[:2])
    for function, more in ((batch_norm_backward_sums, {}), (batch_norm_backward, {"sums": sums})):
        with pytest.raises(ValueError, match=r"^saved must be .* whole batch, of which x has 6 .* got one over 2$"):
            function(x, x, alone, **more)


def test_sums_of_some_parts_of_a_batch_are_refused():
    """Those of x alone have its own number of values, so only what saved knows of the whole batch tells."""
    x = normal(72, (9, 3))
    parts = np.split(x, 3)
    whole = merge(*map(batch_norm_moments, parts))
    _, saved = batch_norm_forward(parts[0], moments=whole)
    sums = [batch_norm_backward_sums(part, part, saved) for part in parts]
    batch_norm_backward(parts[0], parts[0], saved, sums=merge(*sums))
    for some, n in ((sums[0], 3), (merge(*sums[:2]), 6), (merge(*sums, sums[0]), 12)):
        expected = rf"^sums must be merged from all parts of the batch: saved is of 9 values .* sums\.count is {n}$"
        with pytest.raises(ValueError, match=expected):
            batch_norm_backward(parts[0], parts[0], saved, sums=some)


@pytest.mark.parametrize("count", ["abc", [1j], {}, np.ones(4)], ids=str)
def test_a_count_that_is_no_number_is_refused_by_name(count):
    x = normal(67, (6, 3))
    with pytest.raises(TypeError, match=r"saved\.count must be a number"):
        batch_norm_backward(x, x, SavedStatistics(np.zeros(3), np.ones(3), count=count))


@pytest.mark.parametrize(
    ("mean", "var", "eps", "match"),
    [
        (np.ma.masked_array([1.0, 2.0], [0, 1]), [1, 1], 0, "mean must hold real numbers"),
        (np.zeros(2, "M8[s]"), [1, 1], 0, "mean must hold real numbers"),
        ([0, 0], None, 0, "var must hold real numbers"),
        ([0, 0], [1, 1, 1], 0, "mean and var must have the same shape"),
        ([0, 0], [1, 1], True, "eps must be a finite number"),
        ([0, 0], [1, 1], -3, "eps must be a finite number"),
        ([0, 0], [1, 1], np.nan, "eps must be a finite number"),
        ([0, 0], [1, 1], [1, 2], "eps must be a finite number"),
        ([0, 0], [1, 1], None, "eps must be a finite number"),
    ],
)
def test_constants_that_are_no_numbers_are_refused_by_name(mean, var, eps, match):
    with pytest.raises((TypeError, ValueError), match=match):
        SavedStatistics.from_variance(mean, var, eps=eps)
