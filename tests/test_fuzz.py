"""What the fuzzers have kept is replayed, and they notice promises that are broken."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from arrays import examples

import bncpu
from bncpu import BatchNormTransformer, _kernels

FUZZ = Path(__file__).parents[1] / "fuzz"


@pytest.fixture
def target(monkeypatch):
    """A target by its name."""
    monkeypatch.syspath_prepend(FUZZ)
    before = _kernels.isa()
    yield importlib.import_module
    _kernels.use_isa(before)


@pytest.mark.parametrize("name", ["batches", "calls", "load"])
def test_what_was_kept_is_accepted_or_refused_as_promised(name, target):
    outcomes = [target(name).check(data) for data in target("source").kept(name)]
    assert any(outcomes) and not all(outcomes)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["batches", "calls"])
def test_arrays_of_every_kind_give_the_right_numbers_or_one_error(name, target):
    rng = np.random.default_rng(5)
    drawn = [rng.bytes(150) for _ in range(examples(300, 100_000))]
    for data in drawn:
        try:
            target(name).check(data)
        except Exception as error:
            error.add_note(f"python fuzz/{name}.py FILE, with the bytes {data.hex()}")
            raise


# No choice made: batch_norm_forward of (3, 3) in float32.
PLAIN = b""


def test_a_wrong_digit_is_noticed(target, monkeypatch):
    assert target("calls").check(PLAIN)
    original = bncpu.batch_norm_forward

    def wrong(x, **arguments):
        y, saved = original(x, **arguments)
        y[1, 2] *= np.float32(1 + 1e-6)
        return y, saved

    monkeypatch.setattr(bncpu, "batch_norm_forward", wrong)
    with pytest.raises(AssertionError, match=r"y: .* instead of"):
        target("calls").check(PLAIN)


def test_a_write_to_an_input_is_noticed(target, monkeypatch):
    original = bncpu.batch_norm_forward

    def writing(x, **arguments):
        results = original(x, **arguments)
        x[0, 0] = np.nextafter(x[0, 0], np.float32(9))
        return results

    monkeypatch.setattr(bncpu, "batch_norm_forward", writing)
    with pytest.raises(AssertionError, match="wrote where it must not"):
        target("calls").check(PLAIN)


@pytest.mark.parametrize("error", [KeyError, RuntimeError, ValueError])
def test_an_error_for_a_good_call_is_noticed(target, monkeypatch, error):
    def failing(**_):
        raise error("for nothing")

    monkeypatch.setattr(bncpu, "batch_norm_forward", failing)
    with pytest.raises((AssertionError, KeyError, RuntimeError), match="for nothing"):
        target("calls").check(PLAIN)


def test_statistics_a_few_roundings_off_are_noticed(target, monkeypatch):
    assert target("batches").check(PLAIN)
    running_mean = BatchNormTransformer.running_mean_.fget
    monkeypatch.setattr(BatchNormTransformer, "running_mean_", property(lambda self: running_mean(self) * (1 + 1e-13)))
    with pytest.raises(AssertionError, match=r"mean: .* instead of"):
        target("batches").check(PLAIN)


def test_a_state_that_changes_on_its_way_is_noticed(target, monkeypatch):
    good = b"\2"  # a file of which nothing was changed
    assert target("load").check(good)
    original = BatchNormTransformer.load

    def changing(path):
        bn = original(path)
        bn._state = bn._state._replace(n_batches=bn._state.n_batches + 1)
        return bn

    monkeypatch.setattr(BatchNormTransformer, "load", changing)
    with pytest.raises(AssertionError):
        target("load").check(good)
