"""State files: the bytes come back or one ValueError does, and the old file outlives every failure."""

import bisect
import contextlib
import enum
import errno
import gzip
import hashlib
import io
import json
import os
import pickle
import stat
import struct
import threading
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import state_corpus
from arrays import GOOD, examples, normal, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from own_process import run
from sklearn.exceptions import NotFittedError

import bncpu
from bncpu import BatchNormTransformer, _state_file, _temporary

MODES = {
    "cumulative": {},
    "momentum": {"momentum": 0.9, "ddof": 1},
    "halflife": {"halflife": 100},
    "window": {"window": 17},
}
BAD = "is not a state file of BatchNormTransformer"


def fitted(mode="cumulative", **parameters):
    X = normal(0, (50, 4), mean=[0.1, 1e6, 0, 3])
    X[:, 2] = np.nan
    X[::3, 3] = np.nan
    bn = BatchNormTransformer(**MODES[mode], **parameters)
    return bn.partial_fit(X, sample_weight=np.linspace(0.1, 1, 50)).partial_fit(X[:7])


HEAD = {"format": "bncpu.BatchNormTransformer", "version": 1, "sha256": "0" * 64}


def signed(content, **replacements):
    """The bytes of a state file with a valid checksum, whatever its content; the text HERE, say, replaced by bytes."""
    raw = json.dumps({**HEAD, **content}).encode()
    for marked, by in replacements.items():
        assert raw.count(f'"{marked}"'.encode()) == 1
        raw = raw.replace(f'"{marked}"'.encode(), by)
    return raw.replace(b"0" * 64, hashlib.sha256(raw).hexdigest().encode(), 1)


def content_of(path):
    """What a state file holds beside its head."""
    return {key: value for key, value in json.loads(path.read_bytes()).items() if key not in HEAD}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state without extension"


@pytest.mark.parametrize("mode", MODES)
def test_a_loaded_transformer_continues_to_the_bit(mode, path):
    bn = fitted(mode, gamma=[1, 2, 3, 0.1], beta=np.float32([0, 0.1, 2, 3]), eps=1e-5, channel_axis=1)
    X = normal(1, (9, 4))
    bn.partial_fit(np.where(np.arange(4) == 1, np.nan, X))  # one has been seen, but not lately
    bn.save(path)
    again = BatchNormTransformer.load(path)
    for t in (bn, again):
        t.partial_fit(X)
    assert again.n_batches_seen_ == bn.n_batches_seen_
    assert same_bits(np.asarray(again.n_samples_seen_), np.asarray(bn.n_samples_seen_))
    for a, b in zip(again._state.running.moments, bn._state.running.moments, strict=True):
        assert same_bits(a, b)
    assert same_bits(again.transform(X), bn.transform(X))
    assert same_bits(again.inverse_transform(X), bn.inverse_transform(X))
    assert os.listdir(path.parent) == [path.name]


def test_parameters_names_and_counts_come_back(path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(normal(2, (5, 2)), columns=["a", "\N{GREEK SMALL LETTER MU}"])
    bn = BatchNormTransformer(halflife=np.float64(3), copy=False, n_threads=np.int64(1), batch_size=2).fit(frame)
    bn.save(str(path))
    again = BatchNormTransformer.load(os.fsencode(path).decode())
    assert again.get_params() == bn.get_params()
    assert list(again.feature_names_in_) == list(bn.feature_names_in_)
    assert type(again.n_samples_seen_) is type(bn.n_samples_seen_)
    assert again.n_samples_seen_ == 5


def test_a_parameter_changed_since_the_fit_waits_for_the_next_one_after_loading_too(path):
    bn = fitted().set_params(eps=1.0, with_std=False)
    bn.save(path)
    again = BatchNormTransformer.load(path)
    X = normal(3, (5, 4))
    assert again.eps == 1.0 and not again.with_std
    assert again.scale_ is not None
    assert same_bits(again.transform(X), bn.transform(X))
    assert again.partial_fit(X).scale_ is None


def test_the_same_state_gives_the_same_bytes_and_never_observed_is_null(path):
    fitted().save(path)
    first = path.read_bytes()
    BatchNormTransformer.load(path).save(path)
    assert path.read_bytes() == first
    content = json.loads(first)
    assert content["mean"][2] is None
    assert content["count"][2] == 0
    assert np.isnan(BatchNormTransformer.load(path).running_mean_[2])


def test_floats_are_exact(path):
    values = np.array([struct.unpack("<d", struct.pack("<Q", 0x3FD5555555555555 + k))[0] for k in range(4)])
    bn = BatchNormTransformer.from_statistics(values, values * 1e-300, 3)
    bn.save(path)
    again = BatchNormTransformer.load(path)
    assert same_bits(again.running_mean_, bn.running_mean_)
    assert same_bits(again.running_var_, bn.running_var_)


def test_a_path_may_be_text_bytes_or_a_path(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    for name in (path, str(path), os.fsencode(path), "relative", b"relative bytes"):
        fitted().save(name)
        assert BatchNormTransformer.load(name).n_batches_seen_ == 2
    assert sorted(os.listdir()) == sorted([path.name, "relative", "relative bytes"])
    for wrong in (3, None):
        with pytest.raises(TypeError, match="PathLike"):
            BatchNormTransformer.load(wrong)
        with pytest.raises(TypeError, match="PathLike"):
            fitted().save(wrong)
    with pytest.raises(OSError):
        fitted().save(path.parent)
    with pytest.raises(OSError):
        BatchNormTransformer.load(path.parent)


def test_an_unfitted_transformer_has_nothing_to_save(path):
    with pytest.raises(NotFittedError):
        BatchNormTransformer().save(path)
    with pytest.raises(ValueError, match="eps == -1"):
        fitted().set_params(eps=-1).save(path)
    assert not path.exists()


# ---- writing ----


class Fewer(BatchNormTransformer):
    def __init__(self, *, halflife=3.0):
        super().__init__(halflife=halflife, eps=1e-3)


class Renamed(BatchNormTransformer):
    def __init__(self, *, decay=3.0):
        super().__init__()
        self.decay = decay


class Note(enum.StrEnum):
    TEXT = "text"


class More(BatchNormTransformer):
    def __init__(
        self, *, momentum=None, halflife=None, window=None, eps=0.0, ddof=0, with_mean=True, with_std=True, gamma=None,
        beta=None, clip=None, channel_axis=None, batch_size=None, dtype=None, copy=True, n_threads=None, note="",
    ):  # fmt: skip
        super().__init__(
            momentum=momentum, halflife=halflife, window=window, eps=eps, ddof=ddof, with_mean=with_mean,
            with_std=with_std, gamma=gamma, beta=beta, clip=clip, channel_axis=channel_axis, batch_size=batch_size,
            dtype=dtype, copy=copy, n_threads=n_threads,
        )  # fmt: skip
        self.note = note


def test_what_save_writes_the_same_class_loads(path):
    for bn in (Fewer(), Renamed()):
        bn.fit(GOOD)
        with pytest.raises(TypeError, match=f"save needs a class whose constructor takes .*; {type(bn).__name__}"):
            bn.save(path)
        assert not path.exists()
    More(note="kept", halflife=7).fit(GOOD).save(path)
    again = More.load(path)
    assert (type(again), again.note, again.halflife) == (More, "kept", 7)
    refused = [len, {"a": 1}, 1j, (1, 2), np.arange(2), [1.0, float("nan")], float("inf"), [[1], (2,)]]
    refused += [range(3), float, np.float32, Note.TEXT, np.datetime64("2020-01-01", "ns"), [np.int64(1)]]
    for note in refused:
        with pytest.raises(
            TypeError, match="save takes parameters that are finite numbers, texts or lists of them, got note="
        ):
            More(note=note).fit(GOOD).save(path)
    assert More.load(path).note == "kept"
    for note in ([1, "a", None], [True, 2, 0.5, 2**70], [[1, 2], [3]], [], "a\0", "é"):
        More(note=note).fit(GOOD).save(path)
        assert repr(More.load(path).note) == repr(note)
    for note in (np.float32(0.5), np.int64(3), np.bool_(True), np.str_("a")):
        More(note=note).fit(GOOD).save(path)
        assert repr(More.load(path).note) == repr(note.item())


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    fitted().save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def open_on_a_full_disk(*args, **options):
        file = open(*args, **options)  # noqa: SIM115 (as `open` does)
        file.write = full
        return file

    failures = [(_state_file.os, name, full) for name in ("open", "fsync", "chmod", "replace")]
    for module, name, failure in [*failures, (_temporary, "open", open_on_a_full_disk)]:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, failure, raising=False)
            with pytest.raises(OSError, match="No space left") as refusal:
                fitted("halflife").save(path)
            assert (refusal.value.errno, refusal.value.filename) == (errno.ENOSPC, str(path))
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]
    with pytest.raises(FileNotFoundError) as refusal:
        fitted().save(path.parent / "no such folder" / "x")
    assert refusal.value.filename == str(path.parent / "no such folder" / "x")


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")


IMPORTS = """
    import os, random, re, signal, sys, time
    import numpy as np
    from bncpu import BatchNormTransformer, _state_file, _temporary
    path = sys.argv[1]
"""


# Two states, larger than a buffer of `open`.
TWO_STATES = """
    old, new = (BatchNormTransformer().fit(np.random.default_rng(k).standard_normal((3, 300))) for k in range(2))
    folder, name = os.path.split(path)
    def content():
        BatchNormTransformer.load(path)
        with open(path, "rb") as file:
            return file.read()
    new.save(path)
    after = content()
    old.save(path)
    before = content()
    assert before != after and len(after) > 2 * 8193 and os.listdir(folder) == [name]
"""

# Runs `save` in a fork until that is killed; the state must be whole, and the next save work beside what is left.
KILLED = """
    ends = {before: 0, after: 0}
    def killed(save, after_seconds=None):
        child = os.fork()
        if child == 0:
            try:
                signal.alarm(60)
                save()
            finally:
                os._exit(0)
        if after_seconds is not None:
            time.sleep(after_seconds)
            os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)[1]
        if os.WIFEXITED(ended):
            return False
        assert os.WTERMSIG(ended) == signal.SIGKILL
        ends[content()] += 1
        old.save(path)
        assert content() == before
        return True
    def report():
        left = sorted(set(os.listdir(folder)) - {name})
        assert all(re.fullmatch(r"[.]bncpu-[0-9a-f]{16}[.]tmp", file) for file in left), left
        print(ends[before], ends[after], len(left))
"""


@needs_fork
def test_a_save_killed_at_any_of_its_lines_leaves_the_old_state_or_the_new_one(path):
    code = """
    def killed_at(line):
        seen = 0
        def trace(frame, event, _):
            nonlocal seen
            if frame.f_code.co_filename in (_state_file.__file__, _temporary.__file__):
                seen += 1
                if seen > line:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace
        def save():
            sys.settrace(trace)
            new.save(path)
        return killed(save)
    line = 0
    while killed_at(line):
        line += 1
    report()
    """
    n_old, n_new, n_left = map(int, run(IMPORTS, TWO_STATES, KILLED, code, arguments=[str(path)]).split())
    assert n_old > 10 and n_new > 3  # before the file is renamed, and after
    assert 3 < n_left < n_old  # nothing before the file beside it is made


@needs_fork
def test_a_save_killed_at_a_random_moment_leaves_the_old_state_or_the_new_one(path):
    n = examples(20, 200)
    code = f"""
    rng = random.Random(0)
    def save():
        while True:
            new.save(path)
            old.save(path)
    for _ in range({n}):
        assert killed(save, rng.uniform(0, 0.03))
    report()
    """
    n_old, n_new, _ = map(int, run(IMPORTS, TWO_STATES, KILLED, code, arguments=[str(path)]).split())
    assert n_old + n_new == n


@needs_fork
def test_a_file_that_outgrows_its_limit_leaves_the_old_one_and_nothing_else(path):
    code = """
    import errno, resource
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    def refused(limit, target):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            new.save(target)
        except OSError as error:
            return (error.errno, error.filename) == (errno.EFBIG, target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        return False
    limits = [0, 1, 4096, 8191, 8192, 8193, len(after) // 2, len(after) - 1]
    for limit in limits:
        assert refused(limit, path) and content() == before
        assert refused(limit, path + " that was not there")
        assert os.listdir(folder) == [name]
    assert not refused(len(after), path) and content() == after
    print(len(limits))
    """
    assert run(IMPORTS, TWO_STATES, code, arguments=[str(path)]) == "8"


@needs_fork
def test_a_reader_sees_a_whole_state_of_one_of_two_processes_that_write(path):
    n = examples(100, 2000)
    code = f"""
    stop = path + " stop"
    writers = []
    for state in (old, new):
        writers.append(os.fork())
        if writers[-1] == 0:
            try:
                signal.alarm(60)
                while not os.path.exists(stop):
                    state.save(path)
                os._exit(0)
            finally:
                os._exit(1)
    seen = []
    while len(seen) < {n} or len(set(seen)) < 2:
        seen.append(content())
        assert os.waitpid(-1, os.WNOHANG)[0] == 0
    open(stop, "x").close()
    assert [os.waitpid(writer, 0)[1] for writer in writers] == [0, 0]
    os.remove(stop)
    assert os.listdir(folder) == [name]
    print(set(seen) == {{before, after}})
    """
    assert run(IMPORTS, TWO_STATES, code, arguments=[str(path)]) == "True"


def test_a_reader_sees_a_whole_state_of_one_of_two_threads_that_write(path):
    states, contents = [fitted("momentum"), fitted("halflife")], set()
    for state in states:
        state.save(path)
        contents.add(path.read_bytes())
    stop, seen = threading.Event(), []

    def write(state):
        while not stop.is_set():
            state.save(path)

    with ThreadPoolExecutor(2) as pool:
        try:
            writers = [pool.submit(write, state) for state in states]
            while len(seen) < examples(100, 2000) or len(set(seen)) < 2:
                seen.append(path.read_bytes())
                BatchNormTransformer.load(path)
                assert not any(writer.done() for writer in writers)
        finally:
            stop.set()
        assert [writer.result() for writer in writers] == [None, None]
    assert set(seen) == contents
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no pipes in folders")
def test_only_a_file_is_replaced(path):
    os.mkfifo(path)
    with pytest.raises(OSError, match="Not a regular file"):
        fitted().save(path)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert os.listdir(path.parent) == [path.name]


def test_a_name_as_long_as_names_can_be(path):
    long = path.parent / ("x" * 255)
    fitted().save(long)
    assert BatchNormTransformer.load(long).n_batches_seen_ == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_permissions_and_links_stay(path):
    fitted().save(path)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o600)
    link = path.parent / "link"
    link.symlink_to(path)
    fitted("momentum").save(link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert BatchNormTransformer.load(path).momentum == 0.9
    loop = path.parent / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError):
        fitted().save(loop)
    assert loop.is_symlink()


# ---- reading ----


def refused(path, raw, message=""):
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=f"{BAD}.*{message}") as refusal:
        BatchNormTransformer.load(path)
    assert type(refusal.value) is ValueError
    assert str(path)[-8:] in str(refusal.value)


def test_every_flipped_bit_every_changed_digit_and_every_truncation_is_refused(path):
    fitted().save(path)
    raw = path.read_bytes()
    assert len(raw) > 900
    rng = np.random.default_rng(0)
    for at in range(len(raw)):
        for bit in rng.permutation(8)[: examples(1, 8)]:
            refused(path, raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :])
    for at in range(0, len(raw), examples(5, 1)):
        refused(path, raw[:at])
    for at in (at for at, byte in enumerate(raw) if bytes([byte]).isdigit()):
        for other in rng.permutation([digit for digit in b"0123456789" if digit != raw[at]])[: examples(1, 9)]:
            refused(path, raw[:at] + bytes([other]) + raw[at + 1 :])
    refused(path, raw + b" ", "checksum")


STARTS_WRONGLY = "does not begin like one"


def head(**changes):
    return json.dumps({**HEAD, **changes}).encode()


def file_of(write):
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


class Trap:
    """Makes the file "trapped" when unpickled."""

    def __reduce__(self):
        return open, ("trapped", "w")


def zipped(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("state.json", signed({"a": 1}))


OTHERS = {
    "nothing": b"",
    "pickle protocol 0": pickle.dumps(Trap(), protocol=0),
    "pickle protocol 2": pickle.dumps(Trap(), protocol=2),
    "pickle protocol 5": pickle.dumps(Trap(), protocol=5),
    "a transformer's pickle": pickle.dumps(fitted()),
    "joblib": file_of(lambda file: joblib.dump(fitted(), file)),
    "joblib, compressed": file_of(lambda file: joblib.dump(Trap(), file, compress=3)),
    "npy": file_of(lambda file: np.save(file, normal(0, 5))),
    "npy of a pickle": file_of(lambda file: np.save(file, np.array([Trap()]), allow_pickle=True)),
    "npz": file_of(lambda file: np.savez(file, normal(0, 5))),
    "zip": file_of(zipped),
    "gzip": gzip.compress(signed({"a": 1})),
    "yaml": b"!!python/object/apply:os.mkdir [trapped]",
    "Python": b"open('trapped', 'w')",
    "jsonpickle": b'{"py/reduce": [{"py/type": "builtins.open"}, {"py/tuple": ["trapped", "w"]}]}',
    "a byte order mark": b"\xef\xbb\xbf" + signed({"a": 1}),
    "UTF-16": signed({"a": 1}).decode().encode("utf-16"),
    "space before": b" " + signed({"a": 1}),
    "no head": b"{}",
    "null": b"null",
    "version as text": head(version="1"),
    "version true": head(version=True),
    "version 1.0": head(version=1.0),
    "version -1": head(version=-1),
    "version null": head(version=None),
    "version of 10,000 digits": head(version=0).replace(b": 0,", b": " + b"1" * 10_000 + b","),
    "no version": json.dumps({key: value for key, value in HEAD.items() if key != "version"}).encode(),
    "version first": json.dumps({"version": 1, **HEAD}).encode()[:-1] + b", ",
    "another format": signed({"a": 1}).replace(b"BatchNorm", b"LayerNorm"),
    "an older kind of format": signed({"a": 1}).replace(b"bncpu.BatchNormTransformer", b"BatchNormTransformer"),
    "no format": json.dumps({"version": 1, "sha256": "0" * 64, "a": 1}).encode(),
    "a short checksum": head(sha256="0" * 63),
    "a checksum in capitals": head(sha256="A" * 64),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_another_kind_are_refused_unread(name, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    refused(path, OTHERS[name], STARTS_WRONGLY)
    assert os.listdir() == [path.name]


@pytest.mark.parametrize("version", [0, 2, 10, 999_999_999])
def test_another_version_is_refused_whatever_its_checksum(version, path):
    message = f"it has version {version}, and this bncpu reads version 1"
    refused(path, signed({"version": version, "a": 1}), message)
    refused(path, head(version=version)[:-1] + b", ", message)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (signed({"a": 1}), r"it has the entries \['a'\]"),
        (signed({"a": 1}).replace(b"}", b""), "checksum"),
        (signed({"a": 1}).replace(b'"a"', b'"b"'), "checksum"),
        (signed({"version": "HERE", "a": 1}, HERE=b"01"), "delimiter"),
        (signed({"a": "HERE"}, HERE=b"1}"), "Extra data"),
        (signed({"a": "HERE"}, HERE=b""), "Expecting value"),
        (signed({"a": "HERE"}, HERE=b'"\xff"'), "can't decode byte 0xff"),
        (signed({"a": "HERE"}, HERE=b'"\xc3"'), "can't decode byte 0xc3"),
        (signed({"a": "HERE"}, HERE=b'"\xed\xa0\x80"'), "can't decode byte 0xed"),  # half of a surrogate pair
        (signed({"a": "HERE"}, HERE=b'"\x00"'), "Invalid control character"),
        (signed({"a": "HERE"}, HERE=b"1" * 10_000), r"too large: 1{20}\.\.\. of 10000 characters"),
        (signed({"a": "HERE"}, HERE=b"-" + b"1" * 10_000), "too large"),
        (signed({"a": "HERE"}, HERE=b"1" * 10_000 + b".5"), "too large"),
        (signed({"a": "HERE"}, HERE=b"1e" + b"9" * 10_000), "too large"),
        (signed({"a": "HERE"}, HERE=b"0x10"), "delimiter"),
    ],
)
def test_a_valid_checksum_over_broken_text_is_refused(raw, message, path):
    refused(path, raw, message)


@pytest.mark.parametrize("key", ["format", "version", "sha256", "parameters", "m2", "age"])
def test_an_entry_that_stands_twice_is_refused(key, path):
    fitted().save(path)
    content = content_of(path)
    content["TWICE"] = {**HEAD, **content}[key]
    refused(path, signed(content, TWICE=f'"{key}"'.encode()), "twice")


def test_a_parameter_that_stands_twice_is_refused(path):
    fitted().save(path)
    content = content_of(path)
    content["parameters"]["TWICE"] = 1.0
    refused(path, signed(content, TWICE=b'"eps"'), "twice")


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_of_any_depth_is_refused(opening, closing, path):
    def nested(depth):
        return opening * depth + b"0" + closing * depth

    def is_read(depth):
        try:
            json.loads(nested(depth))
        except RecursionError:
            return False
        return True

    deepest = bisect.bisect_left(range(200_000), True, key=lambda depth: not is_read(depth)) - 1
    assert deepest > 500
    fitted().save(path)
    # Their errors show what was found, down to all its depth.
    content = content_of(path)
    for where, key in ((content["parameters"], "with_mean"), (content["in_effect"], "eps"), (content, "mode")):
        was, where[key] = where[key], "HERE"
        for depth in [1, 64, 65, *range(deepest - 40, deepest + 10), 1_000_000]:
            refused(path, signed(content, HERE=nested(depth)))
        where[key] = was


N = examples(20_000, 1_000_000)
LARGE = {
    "numbers": b"[" + b"0," * N + b"0]",
    "large integers": b"[" + b"9007199254740993," * N + b"0]",
    "floats": b"[" + b"0.5," * N + b"0]",
    "a number of many digits": b"0." + b"1" * N,
    "empty lists": b"[" + b"[]," * N + b"0]",
    "empty objects": b"[" + b"{}," * N + b"0]",
    "texts": b"[" + b'"",' * N + b"0]",
    "a text": b'"' + b"x" * N + b'"',
    "entries": b"{" + b",".join(b'"%d":0' % k for k in range(N)) + b"}",
    "the width 2**52": b"%d" % 2**52,
    "the width 2**62": b"%d" % 2**62,
}


@contextlib.contextmanager
def at_most(n_bytes):
    """More bytes than these are never allocated at once, as far as Python and NumPy know."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < n_bytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("key", ["mean", "feature_names_in", "n_samples_seen", "n_features_in", "gamma", "with_std"])
@pytest.mark.parametrize("large", LARGE)
def test_memory_grows_with_the_file_not_with_what_it_claims(large, key, path):
    fitted().save(path)
    content = content_of(path)
    (content["parameters"] if key in content["parameters"] else content)[key] = "HERE"
    raw = signed(content, HERE=LARGE[large])
    path.write_bytes(raw)
    # An empty object of 3 bytes is 64 in memory, and 8 in its list.
    with at_most(40 * len(raw) + 100_000), contextlib.suppress(ValueError):
        BatchNormTransformer.load(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows writes the zeros that a file is extended by")
@pytest.mark.parametrize("start", [b"", head(version=2)[:-1] + b", ", pickle.dumps(0)])
def test_a_file_of_another_kind_may_be_of_any_size(start, path):
    path.write_bytes(start)
    os.truncate(path, 2**40)
    with at_most(100_000), pytest.raises(ValueError, match=BAD):
        BatchNormTransformer.load(path)


@needs_fork
def test_nothing_but_the_file_is_opened_and_nothing_is_imported_or_run(path):
    signed_texts = {f"signed {name}": signed({"a": repr(raw)}) for name, raw in OTHERS.items()}
    files = OTHERS | signed_texts
    files["good"] = (state_corpus.STATES / "0.1.0" / "cumulative.json").read_bytes()
    path.mkdir()
    for name, raw in files.items():
        (path / name).write_bytes(raw)
    code = """
    os.chdir(path)
    watched, events, counts = [], [], [0, 0]
    harmless = {"builtins.id", "object.__getattr__"}  # of inspect, which finds the parameters of the constructor
    def hook(event, args):
        if watched and event not in harmless:
            events.append((event, args[0] if args else None))
    sys.addaudithook(hook)
    for name in sorted(os.listdir()):
        watched.append(name)
        try:
            BatchNormTransformer.load(name)
        except ValueError:
            counts[0] += 1
        else:
            counts[1] += 1
        watched.clear()
        assert events == [("open", name)], (name, events)
        events.clear()
    print(*counts)
    """
    assert run(IMPORTS, code, arguments=[str(path)]) == f"{2 * len(OTHERS)} 1"


CHANGES = {
    "a parameter too many": lambda c: c["parameters"].update(scale=1),
    "a parameter out of range": lambda c: c["parameters"].update(eps=-1),
    "a parameter of another type": lambda c: c["in_effect"].update(eps="0"),
    "parameters as a list": lambda c: c.update(parameters=[1]),
    "gamma of another length": lambda c: c["parameters"].update(gamma=[1.0]),
    "another mode": lambda c: c.update(mode="momentum"),
    "no such mode": lambda c: c.update(mode=["cumulative"]),
    "an entry too few": lambda c: c.pop("age"),
    "no features": lambda c: c.update(n_features_in=0),
    "features as text": lambda c: c.update(n_features_in="4"),
    "half a batch": lambda c: c.update(n_batches_seen=0.5),
    "names that are numbers": lambda c: c.update(feature_names_in=[1, 2, 3, 4]),
    "too few names": lambda c: c.update(feature_names_in=["a"]),
    "a short array": lambda c: c["m2"].pop(),
    "an array of text": lambda c: c.update(m2=["1"] * 4),
    "an array of booleans": lambda c: c.update(m2=[True] * 4),
    "a huge integer": lambda c: c.update(m2=[10**400] * 4),
    "a parameter beyond float64": lambda c: c["parameters"].update(eps=10**400),
    "a parameter in effect beyond float64": lambda c: c["in_effect"].update(ddof=10**400),
    "a negative age": lambda c: c["age"].__setitem__(0, -1.0),
    "more features than there are": lambda c: c.update(n_features_in=2**60),
    "half a batch of a layer": lambda c: c.update(n_batches_tracked=0.5),
    "fewer batches of a layer than none": lambda c: c.update(n_batches_tracked=-2),
    "more batches than can be counted": lambda c: c.update(n_batches_seen=2**53),
    "a negative count": lambda c: c["count"].__setitem__(0, -1.0),
    "a negative m2": lambda c: c["m2"].__setitem__(0, -1.0),
    "a null where something was counted": lambda c: c["mean"].__setitem__(0, None),
    "a null where none can be": lambda c: c["m2"].__setitem__(0, None),
    "a negative number of samples": lambda c: c.update(n_samples_seen=-1),
    "samples of another length": lambda c: c.update(n_samples_seen=[1]),
    "more samples than fit an integer": lambda c: c.update(n_samples_seen=[2**70] * 4),
    "samples as text": lambda c: c.update(n_samples_seen="9"),
    "a halflife of time without a mode": lambda c: c["in_effect"].update(halflife={"nanoseconds": 1}),
    "a duration as eps": lambda c: c["in_effect"].update(eps={"nanoseconds": 1}),
    "a duration of no unit": lambda c: c["parameters"].update(halflife={}),
    "a duration of nothing": lambda c: c["parameters"].update(halflife={"nanoseconds": 0}),
    "a duration beyond 64 bits": lambda c: c["parameters"].update(halflife={"nanoseconds": 2**63}),
    "a last time without a halflife of time": lambda c: c.update(last=0),
    "infinity": lambda c: c["mean"].__setitem__(0, float("inf")),
    "nan": lambda c: c["mean"].__setitem__(0, float("nan")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_valid_checksum_over_wrong_content_is_refused(change, path):
    fitted().save(path)
    content = content_of(path)
    CHANGES[change](content)
    refused(path, signed(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("last"),
        lambda c: c.update(last=0.5),
        lambda c: c.update(last=2**63),
        lambda c: c.update(mode="halflife"),
        lambda c: c["in_effect"].update(halflife=3.0),
    ],
)
def test_a_halflife_of_time_needs_a_last_time(change, path):
    times = np.datetime64("2020-01-01") + np.arange(5)
    BatchNormTransformer(halflife=np.timedelta64(3, "D")).partial_fit(np.arange(5.0)[:, None], times=times).save(path)
    content = content_of(path)
    assert content["last"] == int(times[-1].astype("M8[ns]").astype(int))
    BatchNormTransformer.load(path)
    change(content)
    refused(path, signed(content))


def test_a_number_beyond_float64_is_refused(path):
    fitted().save(path)
    content = content_of(path)
    content["m2"][0] = "HERE"
    for number in (b"1e999", b"-1e999", b"NaN", b"Infinity", b"-Infinity"):
        refused(path, signed(content, HERE=number), "it holds")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_one_value_error(tmp_path_factory, raw):
    refused(tmp_path_factory.getbasetemp() / "any bytes", raw)


def test_a_file_that_is_not_there_is_an_os_error(path):
    with pytest.raises(FileNotFoundError):
        BatchNormTransformer.load(path)


# ---- files of released versions ----


@pytest.mark.parametrize(
    ("version", "name"),
    [
        (folder.name, name)
        for folder in sorted(state_corpus.STATES.iterdir())
        for name in json.loads((folder / state_corpus.EXPECTED).read_text())
    ],
)
def test_every_state_file_ever_released_loads_to_the_bit(version, name):
    folder = state_corpus.STATES / version
    expected = json.loads((folder / state_corpus.EXPECTED).read_text())
    found = state_corpus.described(BatchNormTransformer.load(folder / state_corpus.file_name(name)))
    assert {key: found.get(key) for key in expected[name]} == expected[name]
    assert set(os.listdir(folder)) == {state_corpus.EXPECTED, *map(state_corpus.file_name, expected)}


def test_this_version_has_its_state_files():
    assert bncpu.__version__ in os.listdir(state_corpus.STATES)


def test_state_files_are_written_once(tmp_path):
    state_corpus.write(tmp_path / "new")
    expected = json.loads((tmp_path / "new" / state_corpus.EXPECTED).read_text())
    assert list(expected) == list(state_corpus.CASES)
    for name in expected:
        again = BatchNormTransformer.load(tmp_path / "new" / state_corpus.file_name(name))
        assert state_corpus.described(again) == expected[name]
    with pytest.raises(FileExistsError):
        state_corpus.write(tmp_path / "new")


@pytest.mark.parametrize("there", [b"a,b\n1,2\n", b"\x93NUMPY", b"{}", b'{"format": "another", "version": 1}', b" "])
def test_a_file_of_somebody_else_is_never_replaced(there, tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(there)
    with pytest.raises(FileExistsError, match="no file of bncpu's") as caught:
        BatchNormTransformer().fit([[0.0], [1.0]]).save(path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == there
    assert os.listdir(tmp_path) == ["table.csv"]


def test_an_empty_file_and_any_state_are_replaced(tmp_path):
    path = tmp_path / "state.json"
    path.touch()
    bn = BatchNormTransformer().fit([[0.0], [1.0]])
    for _ in range(2):
        bn.save(path)
        assert BatchNormTransformer.load(path).n_samples_seen_ == 2
    path.write_bytes(path.read_bytes()[:-9])  # damaged
    bn.save(path)
    assert BatchNormTransformer.load(path).n_samples_seen_ == 2
