"""Does the suite notice? Breaks the library in one place at a time, and shows which test goes red.

    python tests/mutants.py                # every mutant, an hour and more; exit code 1 if one survives
    python tests/mutants.py eps-ignored    # some, by name
    python tests/mutants.py --list

A mutant replaces a text that must occur exactly once in its file, so that this list keeps up with the code. Each is
built and tested in a copy of the source tree of its own, with little optimization, as plain C and the fastest variant
of this machine. The test files most likely to see it run first; if they stay green, all others do. The sums of bits in
test_reproducibility.py see almost everything and do not run: a mutant must be seen by a test that says what is wrong.

Needs the test requirements, bncpu installed, and gcc or clang.
"""

import argparse
import concurrent.futures
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
NOT_COPIED = (".git", ".nox", ".venv*", ".hypothesis", ".*_cache", "__pycache__", "*.so", "_[a-z]*.c")
BITS = "tests/test_reproducibility.py"
# bncpu/gpu is there to be imported, but its doctests need the extra gpu.
EVERYTHING = ["tests", "bncpu", "--ignore=bncpu/gpu"]

# What takes so many seconds hangs, and is red, too. Far above what the whole suite takes on a busy machine.
LIMIT = 3600


class Mutant(NamedTuple):
    """One fault: `old` in `file` becomes `new`; `tests` names the test files that should see it.

    `needs` is the kernel variant without which nothing differs.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    needs: str = ""

    @property
    def files(self):
        """Paths of the likely test files."""
        return [f"tests/test_{name}.py" for name in self.tests.split()]


SCALER, PIPELINES = "bncpu/sklearn.py", "bncpu/pipelines.py"
TEMPLATE, UNIT, ALGEBRA = (f"bncpu/src/{name}.h" for name in ("leaves_template", "leaves_unit", "algebra"))
AVX512, NEON, VECTOR, PLAIN_C = (f"bncpu/src/registers_{name}.h" for name in ("avx512", "neon", "vector", "c"))
CONVERSIONS, HALVES = "bncpu/src/conversions_template.h", "bncpu/src/halves.h"
SHORT = "bncpu/src/short_template.h"
THREADS = "bncpu/src/threads.c"
NORMALIZE, MOMENTS = "bncpu/_normalize.py", "bncpu/moments.py"
DRIVERS, JOB, LOOP, PARTS, STEPS = (f"bncpu/src/{name}.pxi" for name in ("drivers", "job", "loop", "parts", "steps"))
PLAIN, FUNCTIONS, LEARNING = (f"bncpu/src/{name}.pxi" for name in ("plain", "functions", "transformer"))
BATCHES, FUNCTIONAL, TRANSFORMER = "bncpu/_batches.py", "bncpu/functional.py", "bncpu/transformer.py"
COMPAT, STATE_FILE, DOOR = "bncpu/_compat.py", "bncpu/_state_file.py", "bncpu/_door.py"
YARDSTICKS = "bncpu/_yardsticks.py"
RUNNING, STATE = "bncpu/running.py", "bncpu/state.py"
LAYOUT, PASSES = "bncpu/_layout.py", "bncpu/_passes.py"
TIMES, REPORT = "bncpu/_times.py", "bncpu/_report.py"
SUMS, RESULTS = "bncpu/src/sums_template.h", "bncpu/src/results_template.h"
FILES, TABLES, TEXT = "bncpu/_files.py", "bncpu/_tables.py", "bncpu/_text.py"
FILES_AS_ONE = "bncpu/_stream.py"

MUTANTS = [
    # ---- kinds of running statistics ----
    Mutant(
        "older-pieces-not-merged",
        RUNNING,
        "lambda later, own: moments.merge(own, later)",
        "lambda _, own: own",
        "running",
    ),
    Mutant(
        "rows-that-left-counted",
        RUNNING,
        "self.older[0].without(self.gone).moments",
        "self.older[0].moments",
        "running",
    ),
    Mutant("window-a-row-short", RUNNING, "- now.gone - window", "- now.gone - window + 1", "running"),
    Mutant("weights-of-a-window-lost", RUNNING, "else weights[first:]", "else None", "running"),
    Mutant("kinds-continued-as-others", RUNNING, "if known.name != wanted.name:", "if False:", "running"),
    # ---- half-lives of time ----
    Mutant("time-between-batches-ignored", TIMES, "int(times[0]) if last is None else last", "int(times[0])", "times"),
    Mutant("halves-of-a-batch-at-one-time", BATCHES, "times[half:] - times[half - 1]", "times[half:]", "times"),
    Mutant("zones-forgotten", TIMES, "value.astimezone(datetime.UTC).replace(", "value.replace(", "times"),
    Mutant("the-last-time-not-restored", STATE, '_last(kept.get("last"))', "None", "times"),
    Mutant("the-size-of-a-drift-ignored", REPORT, "(np.abs(shift) >= min_shift)", "True", "report"),
    # ---- what is no number ----
    Mutant("dates-of-frames-taken", DOOR, "startswith(NO_NUMBERS)", 'startswith("nothing")', "door"),
    Mutant("masks-dropped", DOOR, "if not np.ma.is_masked(X):", "if True:", "door"),
    Mutant(
        "masked-weights-taken",
        "bncpu/_weights.py",
        "return sample_weight.filled(0) if",
        "return sample_weight.data if",
        "door",
    ),
    Mutant("lists-of-arrays-cut", DOOR, "if isinstance(item[0], np.ndarray) or", "if", "door"),
    Mutant("empty-batches-counted", DOOR, "return len(shape) > 1 and shape[0] == 0", "return False", "door"),
    Mutant(
        "other-files-replaced", "bncpu/_state_file.py", "if head and not ours.match(head):", "if False:", "state_file"
    ),
    # ---- short rows ----
    Mutant("short-turned-twice", SHORT, "next[2 * k + 1] = NAME(high)", "next[2 * k + 1] = NAME(low)", "short", "avx2"),
    Mutant(
        "short-order-of-sums", SHORT, "s[u] += s[u + half];", "s[u] = s[u + half] + (s[u] + zero) * 1.0000001;", "short"
    ),
    Mutant("short-eps-ignored", SHORT, "m2 / n + mean * mean) + eps", "m2 / n + mean * mean) + 0 * eps", "short"),
    Mutant("short-mean-lo-ignored", SHORT, "centred ? zero - mean_lo * scale : zero", "zero", "short"),
    Mutant("short-scale-that-does-not-fit", SHORT, "(scale > 1e37)", "(scale > 1e307)", "short"),
    Mutant("short-shift-that-does-not-fit", SHORT, "absolute(center) > 1e30", "absolute(center) > 1e38", "short"),
    Mutant(
        "short-reads-behind-the-end",
        SHORT,
        "first + 2 * T_LANES <= p.channels",
        "first + T_LANES <= p.channels",
        "short",
    ),
    Mutant(
        "short-of-strided-rows", SHORT, "const int adjacent = y.channel == p.inner;", "const int adjacent = 1;", "short"
    ),
    Mutant("short-gap-forgotten", SHORT, "(!fits || n_waiting + T_LANES", "(n_waiting + T_LANES", "short"),
    Mutant("short-parameters-of-groups", "bncpu/_passes.py", "bool(parameters[2] == statistics[3])", "True", "short"),
    Mutant("short-moments-of-rows-left-out", NORMALIZE, "to[own] = values", "pass", "short"),
    # ---- variance, eps, ddof ----
    Mutant(
        "unbiased-variance-in-forward",
        STEPS,
        "bn_inverse_std(m.m2 / m.count, j.eps)",
        "bn_inverse_std(m.m2 / (m.count - 1), j.eps)",
        "functional",
    ),
    Mutant(
        "unbiased-variance",
        ALGEBRA,
        "double degrees = count - ddof;",
        "double degrees = count - ddof - (ddof == 0);",
        "moments",
    ),
    Mutant("ddof-ignored", ALGEBRA, "double degrees = count - ddof;", "double degrees = count;", "moments"),
    Mutant(
        "ddof-ignored-with-momentum",
        ALGEBRA,
        "bn_variance(batch.count, batch.m2, ddof)",
        "bn_variance(batch.count, batch.m2, 0)",
        "moments",
    ),
    Mutant("eps-ignored", ALGEBRA, "double std = sqrt(var + eps);", "double std = sqrt(var);", "functional"),
    Mutant(
        "eps-outside-the-root", ALGEBRA, "double std = sqrt(var + eps);", "double std = sqrt(var) + eps;", "functional"
    ),
    Mutant(
        "eps-ignored-in-the-transformer",
        ALGEBRA,
        "r.divisor = sqrt(r.var + eps);",
        "r.divisor = sqrt(r.var);",
        "moments",
    ),
    Mutant(
        "near-constants-scaled",
        ALGEBRA,
        "return std <= (n < most ? n : most) * u * fabs(mean);",
        "return std <= 0;",
        "moments",
    ),
    Mutant("near-constants-without-limit", ALGEBRA, "(n < most ? n : most) * u", "n * u", "transformer"),
    Mutant(
        "near-constants-by-all-batches",
        STATE,
        "(n_samples / n_batches, 0.0) if kind",
        "(n_samples, 0.0) if kind",
        "transformer",
    ),
    # ---- merge ----
    Mutant(
        "last-block-dropped-in-the-merge",
        ALGEBRA,
        "for (; n > 1; n = half + n % 2) {\n        half = n / 2;\n        for (i = 0; i < half; i++) {",
        "for (; n > 1; n = half) {\n        half = n / 2;\n        for (i = 0; i < half; i++) {",
        "moments",
    ),
    Mutant(
        "last-block-dropped-in-the-sum",
        ALGEBRA,
        "for (; n > 1; n = half + n % 2) {\n        half = n / 2;\n        for (i = 0; i < half; i++)\n",
        "for (; n > 1; n = half) {\n        half = n / 2;\n        for (i = 0; i < half; i++)\n",
        "moments",
    ),
    Mutant(
        "mean-lo-ignored-in-the-merge",
        ALGEBRA,
        "(light.mean - heavy.mean) + (light.mean_lo - heavy.mean_lo)",
        "light.mean - heavy.mean",
        "moments",
    ),
    Mutant(
        "mean-lo-lost-in-the-merge",
        ALGEBRA,
        "bn_two_sum(m.mean, lo + heavy.mean_lo, &m.mean_lo)",
        "bn_two_sum(m.mean, lo, &m.mean_lo)",
        "moments",
    ),
    Mutant("mean-lo-ignored-in-the-fold", ALGEBRA, "beta - mean_lo * scale", "beta", "functional moments"),
    Mutant("mean-lo-ignored-backward", ALGEBRA, "offset - mean_lo * x_scale", "offset", "functional"),
    Mutant("between-ignored", ALGEBRA, "    if (between)\n        m.m2", "    if (0)\n        m.m2", "moments"),
    Mutant(
        "one-block-of-one-channel-skipped",
        STEPS,
        "to + j.field, to + 2 * j.field, to + 3 * j.field):\n        bn_raise_flags(&j.seen, 1)\n",
        "to + j.field, to + 2 * j.field, to + 3 * j.field):\n        bn_raise_flags(&j.seen, 1)\n"
        "    if at.block == 1 and at.channel == 0:\n        to[0] = 0\n",
        "kernels",
    ),
    # ---- ends, lanes, accumulators ----
    Mutant(
        "integers-summed-about-no-integer",
        SUMS,
        "type >= BN_UINT8 ? rint(shift[c] + mean) : shift[c] + mean",
        "shift[c] + mean",
        "numbers",
    ),
    Mutant(
        "strided-rows-converted-as-if-packed",
        CONVERSIONS,
        "channels == 1 && a.outer == run",
        "channels == 1",
        "numbers",
    ),
    Mutant(
        "every-piece-of-a-plane-is-the-first",
        SUMS,
        "NAME(at)(a.x, o, c, start)",
        "NAME(at)(a.x, o, c, 0)",
        "numbers",
    ),
    Mutant("ties-of-halves-away-from-0", HALVES, "0xfff + (size >> 13 & 1)", "0x1000", "numbers"),
    Mutant(
        "smallest-halves-are-0",
        HALVES,
        "(small & is_small) | (normal & ~is_small));",
        "(normal & ~is_small));",
        "numbers",
    ),
    Mutant(
        "large-narrow-results-shifted",
        UNIT,
        "k, head = (ptrdiff_t)(-(uintptr_t)to % 64);",
        "k, head = 8;",
        "numbers",
    ),
    Mutant(
        "dtype-of-the-result-ignored",
        BATCHES,
        "X, dtype = self.X, _layout.result_dtype(self.dtype, dtype)",
        "X, dtype = self.X, _layout.result_dtype(self.dtype)",
        "numbers",
    ),
    Mutant("one-weight-for-all-joined-rows", SUMS, "weights[row[g]]", "weights[0]", "kernels"),
    Mutant("blocks-do-not-fade", STEPS, "bn_decay(<double> rows_after, j.halflife)", "1", "kernels"),
    Mutant("recency-of-the-halflife-before", DRIVERS, "last[0] == halflife and ", "", "kernels"),
    Mutant(
        "columns-of-a-frame-in-any-order",
        COMPAT,
        "found != names.tolist()",
        "set(found) != set(names.tolist())",
        "frames",
    ),
    Mutant(
        "subclasses-of-frames-taken",
        COMPAT,
        "if type(X) is getattr(sys.modules.get(library), name, None):",
        "if isinstance(X, getattr(sys.modules.get(library), name, ())):",
        "frames",
    ),
    Mutant("columns-of-any-type-taken", COMPAT, "if not dtypes <= NUMBERS:", "if False:", "frames"),
    Mutant(
        "reads-are-not-gathered", UNIT, "all[h * each + k] ^= vbits_load", "all[h * each + k] = vbits_load", "kernels"
    ),
    Mutant(
        "gradients-read-once",
        YARDSTICKS,
        '"gradients": Limit(read=2, triad=1)',
        '"gradients": Limit(triad=1)',
        "yardsticks",
    ),
    Mutant(
        "names-of-an-earlier-fit-kept",
        TRANSFORMER,
        'self.__dict__.pop("feature_names_in_", None)',
        "pass",
        "small_calls",
    ),
    Mutant("channels-last-taken-for-axis-1", PLAIN, "cnp.PyArray_NDIM(x) - 1 if last else 1", "1", "small_calls"),
    Mutant("images-counted-as-rows", TRANSFORMER, "X.size // batch.shape[1]\n", "len(X)\n", "small_calls"),
    Mutant("negative-weights-learned", LEARNING, "if np.minimum.reduce(weights) < 0:", "if False:", "small_calls"),
    Mutant("last-rows-not-summed", SUMS, "o < rows; o++)", "o < rows - 1; o++)", "kernels"),
    Mutant("other-quarters-not-summed", SUMS, "h < streams; h++", "h < 1; h++", "kernels"),
    Mutant("rows-between-setups-not-summed", SUMS, "u < n_rows; u += step", "u < 1; u += step", "kernels"),
    Mutant(
        "all-columns-converted-as-the-first",
        SUMS,
        "NAME(at)(a.x, 0, c, 0);\n        }",
        "a.x.data;\n        }",
        "numbers",
    ),
    Mutant("columns-in-turn-overlap", SUMS, "j += registers * LANES)", "j += LANES)", "kernels"),
    Mutant(
        "last-column-not-summed",
        SUMS,
        "wide, width, j, 1, width - j, k,",
        "wide, width, j, 1, width - j - 1, k,",
        "kernels",
    ),
    Mutant(
        "last-of-a-plane-not-summed",
        SUMS,
        "ptrdiff_t left = end - i - u * LANES;",
        "ptrdiff_t left = inner - 1 - i - u * LANES;",
        "kernels",
    ),
    Mutant(
        "last-column-not-written",
        RESULTS,
        "NAME(rows_apply_line)(a, o, j, width - j, c, step, how)",
        "NAME(rows_apply_line)(a, o, j, width - j - 1, c, step, how)",
        "kernels",
    ),
    Mutant(
        "last-of-a-plane-not-written",
        RESULTS,
        "NAME(apply_line)(a, o, channel, i, end - i, k, 1, step, how)",
        "NAME(apply_line)(a, o, channel, i, end - i - 1, k, 1, step, how)",
        "kernels",
    ),
    Mutant(
        "planes-joined-a-value-late",
        RESULTS,
        "NAME(joined)(k[h], next, end - i - h * T_LANES, how)",
        "NAME(joined)(k[h], next, end - i - h * T_LANES + 1, how)",
        "kernels",
    ),
    Mutant(
        "sums-in-float32",
        SUMS,
        "    *q += g * d;\n",
        "    *q += g * d;\n    for (int l = 0; l < LANES; l++)\n        ((double *)s)[l] = (float)((double *)s)[l];\n",
        "kernels",
    ),
    Mutant(
        "lanes-added-in-another-order",
        AVX512,
        "return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));",
        "return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));",
        "kernels",
        needs="avx512",
    ),
    Mutant(
        "third-value-of-a-register-not-written-in-neon",
        NEON,
        "if (n == 3)",
        "if (n == 4)",
        "kernels",
        needs="neon",
    ),
    Mutant(
        "lane-beyond-the-end-summed-in-neon",
        NEON,
        "return (vdouble)vsetq_lane_f64(0, (float64x2_t)v, 1);",
        "return v;",
        "kernels",
        needs="neon",
    ),
    Mutant(
        "planes-joined-a-lane-late-in-neon",
        NEON,
        "vld1q_u32(first_32 + 4 - n)",
        "vld1q_u32(first_32 + 4 - n + (n > 0))",
        "kernels",
        needs="neon",
    ),
    Mutant(
        "dy-with-the-strides-of-x",
        TEMPLATE,
        "(const T *)a.dy.data + o * a.dy.outer",
        "(const T *)a.dy.data + o * a.x.outer",
        "kernels",
    ),
    Mutant(
        "fused-multiply-add-in-avx512",
        "build_ext.py",
        '"-ffp-contract=off"',
        '"-ffp-contract=fast", "-fexpensive-optimizations"',  # without which gcc -O1 fuses nothing
        "kernels",
        "avx512",
    ),
    # ---- shifts ----
    Mutant(
        "stale-shift",
        SUMS,
        "    NAME(choose_shift)(p, x, counted, weights, weight_stride, 0, shift);\n",
        "    static double old[BN_TILE];\n    static ptrdiff_t known;\n"
        "    NAME(choose_shift)(p, x, counted, weights, weight_stride, 0, shift);\n"
        "    for (; known < p.channels; known++)\n        old[known] = shift[known];\n"
        "    memcpy(shift, old, p.channels * sizeof(double));\n",
        "kernels",
    ),
    Mutant(
        "shift-of-the-first-channel",
        SUMS,
        "NAME(about) at = {k.center + c, NULL, NULL, NULL};",
        "NAME(about) at = {k.center, NULL, NULL, NULL};",
        "kernels",
    ),
    Mutant("never-recentred", SUMS, "between > 64.0 * (q[c] - between)", "0", "kernels"),
    Mutant(
        "recentred-but-not-summed-again",
        SUMS,
        "    if (NAME(recentre)(p.channels, x.type, count, s, q, shift))\n",
        "    if (NAME(recentre)(p.channels, x.type, count, s, q, shift) > 1)\n",
        "kernels",
    ),
    Mutant(
        "shift-of-the-first-weight",
        UNIT,
        "if (bits == largest) {",
        "if (1) {",
        "kernels",
    ),
    Mutant("sparse-never-recentred", BATCHES, "if np.any(_far(*sums[1:])):", "if False:", "batches"),
    # ---- missing values and infinity ----
    Mutant("nan-counted", SUMS, "        w = observed(d, w);\n", "", "kernels"),
    Mutant("nan-not-left-out", SUMS, "masked |= skip_missing && !finite[c];", "masked |= 0;", "kernels"),
    Mutant("infinity-for-a-shift", SUMS, "isinf(value) ? 0.0 : value", "value", "kernels"),
    Mutant("missing-not-reported", DRIVERS, "return sums, j.seen != 0", "return sums, False", "transformer"),
    Mutant(
        "missing-ignored-in-small-calls",
        TRANSFORMER,
        "if missing or type(before) not in (int, float)",
        "if type(before) not in (int, float)",
        "small_calls",
    ),
    Mutant(
        "sparse-missing-not-reported",
        BATCHES,
        "missing = missing or bool(np.isnan(X.data[part]).any())",
        "pass",
        "batches",
    ),
    Mutant("infinity-not-seen", RESULTS, "return how & BOTH ? any : any ? BN_IN_Y : 0;", "return 0;", "kernels"),
    Mutant("infinity-not-told-from-overflow", RESULTS, "& BN_IN_X)", "& 0)", "infinities"),
    Mutant("overflow-of-rounding-not-seen", RESULTS, "if (NAME(exceeds)(", "if (0 && NAME(exceeds)(", "infinities"),
    Mutant(
        "infinity-hidden-by-gamma", LEARNING, "j.both = not apart or _hides(&j)", "j.both = not apart", "infinities"
    ),
    Mutant(
        "infinity-of-columns-let-through",
        TRANSFORMER,
        "        _infinities.of_results(now, batch, y, seen, names",
        "        _infinities.of_results(now, batch, y, 0, names",
        "infinities",
    ),
    Mutant(
        "infinity-let-through",
        TRANSFORMER,
        "        _infinities.of_results(self, batch, y, seen, names",
        "        _infinities.of_results(self, batch, y, 0, names",
        "validation",
    ),
    Mutant(
        "set-output-ignored-with-out",
        TRANSFORMER,
        "((out is None and axis is None) or not _door.wrapped(self))",
        "True",
        "small_calls",
    ),
    Mutant(
        "infinity-let-through-in-small-calls",
        LEARNING,
        "return None if apart else (y",
        "return y if apart else (y",
        "small_calls",
    ),
    Mutant(
        "infinity-learned",
        TRANSFORMER,
        "_infinities.finite_moments(self, None if batch.lazy else batch, summary.moments, names, first_row)\n",
        "pass\n",
        "validation",
    ),
    Mutant(
        "infinity-learned-in-small-calls",
        LEARNING,
        "return isfinite(running.m2 + running.mean)",
        "return True",
        "small_calls",
    ),
    Mutant(
        "overflow-of-the-union-learned",
        TRANSFORMER,
        "        _infinities.finite_moments(self, None, running.moments, names)\n",
        "",
        "state",
    ),
    Mutant(
        "zeros-of-sparse-columns-ignored",
        BATCHES,
        "np.maximum(everything - stored_weight, 0.0)",
        "np.zeros(n_channels)",
        "batches",
    ),
    # ---- running statistics ----
    Mutant(
        "momentum-the-wrong-way-round",
        ALGEBRA,
        "    if (batch.count > 0) {\n",
        "    if (batch.count > 0) {\n        momentum = 1 - momentum;\n",
        "moments",
    ),
    Mutant(
        "momentum-of-functions-the-wrong-way-round",
        MOMENTS,
        "return momentum * old + (1 - momentum) * new",
        "return momentum * new + (1 - momentum) * old",
        "functional",
    ),
    Mutant(
        "momentum-decays-what-was-not-seen",
        ALGEBRA,
        "    if (batch.count > 0) {\n",
        "    if (1) {\n",
        "moments",
    ),
    Mutant(
        "halflife-of-gaps-ignored",
        MOMENTS,
        "age = batch.count > 0, age + span",
        "age = batch.count > 0, 0 * age + span",
        "transformer",
    ),
    Mutant(
        "state-changed-before-a-refusal",
        TRANSFORMER,
        "after = self._as_it_is()\n        p = states.parameters(after)\n        new",
        "after = self\n        p = states.parameters(after)\n        new",
        "validation",
    ),
    Mutant(
        "state-changed-before-a-refused-merge",
        TRANSFORMER,
        "after = self._as_it_is()\n        if isinstance(other,",
        "after = self\n        if isinstance(other,",
        "validation transformer",
    ),
    Mutant(
        "running-arrays-changed-before-a-refusal",
        FUNCTIONAL,
        '    ddof = _scalars.real("ddof", ddof, low=0)\n    eps',
        "    if running_mean is not None:\n        running_mean *= momentum\n"
        '    ddof = _scalars.real("ddof", ddof, low=0)\n    eps',
        "arguments",
    ),
    Mutant(
        "fresh-parameters-not-noticed",
        LEARNING,
        "memcmp(_values(now), _values(then), cnp.PyArray_NBYTES(<cnp.ndarray> now)) == 0",
        "True",
        "small_calls",
    ),
    Mutant(
        "checksum-not-verified",
        STATE_FILE,
        "if hashlib.sha256(raw[:at] + UNSIGNED.encode() + raw[end:]).hexdigest() != start[3].decode():",
        "if False:",
        "state_file",
    ),
    Mutant(
        "ages-not-saved",
        STATE,
        '"age": _as_json(state.running.age)',
        '"age": _as_json(0 * state.running.age)',
        "state_file",
    ),
    # ---- scikit-learn's StandardScaler, and pipelines ----
    Mutant(
        "rounded-between-batches",
        SCALER,
        "_exact.get(id(mean), (None, Moments(*values[:4])))",
        "None, Moments(*values[:4])",
        "sklearn",
    ),
    Mutant("set-attributes-ignored", SCALER, "np.array_equal(mean, _mean(last), equal_nan=True):", "True:", "sklearn"),
    Mutant("missing-for-ever", SCALER, "    values[:, values[0] == 0] = 0  # their mean is NaN\n", "", "sklearn"),
    Mutant(
        "overwritten-before-a-refusal",
        SCALER,
        "        assert_all_finite(x, allow_nan=True)\n",
        "        pass\n",
        "sklearn",
    ),
    Mutant("constants-scaled", SCALER, "constant_mask=constant", "constant_mask=constant & False", "sklearn"),
    Mutant("weights-of-their-own-type", SCALER, "if weights.min() < 0 or", "if", "sklearn"),
    Mutant("pickles-need-us", SCALER, '"name", "")', '"name", "bncpu")', "sklearn"),
    Mutant("inner-patch-undone", "bncpu/accel.py", "if not _calls and not _contexts:", "if True:", "accel"),
    Mutant(
        "workers-not-patched",
        "bncpu/accel.py",
        "        _Wrapper.__reduce__ = _of_worker\n",
        "        pass\n",
        "accel",
    ),
    Mutant(
        "pipelines-are-watched",
        "bncpu/_compat.py",
        'bool(getattr(context, "_callbacks", True))',
        "True",
        "sklearn compat",
    ),
    Mutant(
        "refused-batches-half-learned",
        PIPELINES,
        "                _restore(estimator, attributes, copies)\n",
        "                pass\n",
        "pipelines",
    ),
    Mutant("changed-in-place", PIPELINES, "copy.deepcopy(value, known)", "value", "pipelines"),
    Mutant(
        "frozen-steps-learn",
        PIPELINES,
        'hasattr(step, "partial_fit") and not _is_frozen(step)',
        'hasattr(step, "partial_fit")',
        "pipelines",
    ),
    # ---- files ----
    Mutant("checkpoint-forgets-its-rows", FILES, '"rows": learning.rows', '"rows": 0', "files"),
    Mutant("small-rest-is-a-batch", FILES_AS_ONE, "fewest=kind.fewest_values(bn.ddof)", "fewest=0", "files"),
    Mutant("resumed-row-group-learned-twice", TABLES, "skipped = min(skip, len(piece))", "skipped = 0", "files"),
    Mutant(
        "shares-of-columns-exchanged",
        TABLES,
        "np.concatenate(moments, axis=-1)",
        "np.concatenate(moments[::-1], axis=-1)",
        "files",
    ),
    Mutant("weights-of-the-next-batch-lost", TABLES, "X[n_rows:], w[n_rows:]", "X[n_rows:], 0", "files"),
    Mutant("batch-overwritten-while-in-use", TABLES, "spaces.reverse()", "pass", "files"),
    Mutant(
        "null-becomes-nan",
        "bncpu/_writing.py",
        "missing = column.is_null().to_numpy() if column.null_count else None",
        "missing = None",
        "files",
    ),
    Mutant("rows-read-twice-after-a-rare-text", TEXT, "            skip = n_read\n", "            skip = 0\n", "text"),
    Mutant("blanks-around-missing-values-refused", TEXT, "self.seen_missing.add(fields[c])", "pass", "text"),
    Mutant("missing-texts-lost-where-carried", TEXT, "if numbers else ['']", "if True else ['']", "text"),
    Mutant("quoted-nothing-is-missing", TEXT, '"true" if numbers else "false"', '"true"', "text"),
    Mutant("folders-named-like-columns", TEXT, '"hive_partitioning": "false"', '"hive_partitioning": "true"', "text"),
    Mutant("damaged-compression-taken", TEXT, "self.compression is not None or", "", "text"),
    Mutant("comments-are-rows", TEXT, "self.drops_lines = self.comment is not None or", "self.drops_lines =", "text"),
    Mutant("late-keys-lost", "bncpu/_json_lines.py", "*(name for name in kinds if name not in self.seen)", "", "text"),
    Mutant(
        "rows-of-fewer-fields-taken",
        TEXT,
        '"strict_mode": "true"',
        '"strict_mode": "false", "null_padding": "true"',
        "text",
    ),
    Mutant(
        "decimal-commas-not-found", TEXT, 'self.found.append("decimal \',\'")\n        return ","', 'return "."', "text"
    ),
    Mutant("thousands-are-fractions", TEXT, "        if not thousands:\n", "        if False:\n", "text"),
    Mutant("units-learned", TEXT, "            self.skip = last\n", "", "text"),
    Mutant("killed-files-stay", "bncpu/_temporary.py", "if not _lock(file):", "if True:", "commands"),
    Mutant("others-files-removed", "bncpu/_temporary.py", "if not _lock(file):", "if False:", "commands"),
    Mutant("sigterm-ends-at-once", "bncpu/cli.py", '("SIGTERM", "SIGHUP")', '("SIGHUP",)', "commands"),
    Mutant(
        "old-results-replaced",
        FILES,
        "if not change.force and out != STANDARD",
        "if False and out != STANDARD",
        "commands",
    ),
    Mutant(
        "stale-types-for-pandas",
        "bncpu/_writing.py",
        "column.update(pandas_type=kind, numpy_type=kind, metadata=None)",
        "pass",
        "text",
    ),
    Mutant(
        "order-of-files-decides",
        FILES_AS_ONE,
        "column.numeric and not column.empty and not column.why_not",
        "column.numeric and not column.why_not",
        "text",
    ),
    # ---- ReLU and gradients ----
    Mutant(
        "residual-after-relu",
        RESULTS,
        "        v = centred * k.scale + k.shift;\n",
        "        v = centred * k.scale + k.shift;\n"
        "        if (how & RELU && !(how & BACKWARD))\n            v = NAME(relu)(v);\n",
        "kernels",
    ),
    Mutant(
        "relu-passes-the-gradient-at-0",
        VECTOR,
        "INLINE vt_f32 where_above_0_f32(vt_f32 y, vt_f32 v) { return (vt_f32)((vbits_f32)v & ~(y <= 0)); }",
        "INLINE vt_f32 where_above_0_f32(vt_f32 y, vt_f32 v) { return (vt_f32)((vbits_f32)v & ~(y < 0)); }",
        "kernels functional",
    ),
    Mutant(
        "relu-sums-the-gradient-at-0",
        VECTOR,
        "INLINE ht_f32 where_above_0_ht_f32(ht_f32 y, ht_f32 v) { return (ht_f32)((hbits_f32)v & ~(y <= 0)); }",
        "INLINE ht_f32 where_above_0_ht_f32(ht_f32 y, ht_f32 v) { return (ht_f32)((hbits_f32)v & ~(y < 0)); }",
        "kernels functional",
    ),
    Mutant(
        "short-backward-without-relu",
        FUNCTIONS,
        "_row(j, 1), _row(j, 2), True",
        "_row(j, 1), _row(j, 2), False",
        "small_calls",
    ),
    Mutant(
        "short-relu-without-beta",
        FUNCTIONS,
        "0.0 if j.beta == NULL else j.beta[c], j.center_lo[c])):\n            return None",
        "0.0, j.center_lo[c])):\n            return None",
        "small_calls",
    ),
    Mutant(
        "short-backward-of-another-where",
        FUNCTIONAL,
        "then.where == (None if where is None else checksum(where))",
        "True",
        "where saved",
    ),
    Mutant(
        "short-backward-counts-all",
        FUNCTIONS,
        "        _counts = _new_counts(&j, n_values)\n",
        "",
        "small_calls",
    ),
    Mutant("short-backward-forgets-beta", FUNCTIONAL, "then.beta == (beta is not None)", "True", "small_calls"),
    Mutant(
        "relu-passes-the-gradient-at-0-in-plain-c",
        PLAIN_C,
        "INLINE vt_f32 where_above_0_f32(vt_f32 y, vt_f32 v) { return y <= 0 ? 0.0f : v; }",
        "INLINE vt_f32 where_above_0_f32(vt_f32 y, vt_f32 v) { return y < 0 ? 0.0f : v; }",
        "kernels functional",
    ),
    Mutant(
        "relu-stops-nan",
        VECTOR,
        "return (vt_f32)((vbits_f32)v & ~(v < 0));",
        "return (vt_f32)((vbits_f32)v & (v >= 0));",
        "kernels",
    ),
    Mutant("relu-stops-nan-in-plain-c", PLAIN_C, "return v < 0 ? 0.0f : v;", "return v >= 0 ? v : 0.0f;", "kernels"),
    Mutant(
        "relu-stops-the-gradient-of-nan",
        VECTOR,
        "where_above_0_f64(vt_f64 y, vt_f64 v) { return (vt_f64)((vbits_f64)v & ~(y <= 0)); }",
        "where_above_0_f64(vt_f64 y, vt_f64 v) { return (vt_f64)((vbits_f64)v & (y > 0)); }",
        "functional kernels",
    ),
    Mutant(
        "dgamma-without-mean-lo",
        STEPS,
        "bn_sum_blocks(j.sums + j.field + c, j.n_blocks, j.width) - j.center_lo[c] * total",
        "bn_sum_blocks(j.sums + j.field + c, j.n_blocks, j.width)",
        "functional",
    ),
    Mutant(
        "dgamma-of-parts-without-mean-lo",
        MOMENTS,
        "(product - saved.mean_lo * total) * saved.invstd",
        "product * saved.invstd",
        "functional",
    ),
    Mutant("dx-without-the-mean", ALGEBRA, "double offset = -invstd * (g / count)", "double offset = 0", "functional"),
    Mutant("dx-without-x-hat", ALGEBRA, "along = -invstd * (g_x_hat / count)", "along = 0", "functional"),
    Mutant(
        "count-of-a-part-for-that-of-the-batch",
        FUNCTIONAL,
        "total.dbeta, total.dgamma, total.count)",
        "total.dbeta, total.dgamma, x.size // n_channels)",
        "functional",
    ),
    Mutant("other-batch-size-let-through", "bncpu/saved.py", "if wrong.any():", "if False:", "saved"),
    Mutant(
        "constants-for-statistics",
        "bncpu/saved.py",
        "if was is not None and not (isinstance(was, str) and was == kind):",
        "if False:",
        "saved",
    ),
    Mutant("constants-in-short-calls", FUNCTIONAL, ' and kind == "training")', ")", "saved"),
    Mutant("argument-too-many-taken", "bncpu/saved.py", "        if has and not had:", "        if False:", "saved"),
    Mutant("sums-of-some-parts", "bncpu/_arguments.py", "np.any(whole.count != count)", "False", "saved"),
    Mutant("number-below-the-least", "bncpu/_scalars.py", "low <= value <= most", "value <= most", "scalars"),
    Mutant("groups-ignored", "bncpu/folding.py", "if axes == (1,) and groups > 1:", "if False:", "folding"),
    Mutant(
        "forgotten-argument-taken",
        "bncpu/saved.py",
        "        _compare(saved.call, now._replace(where=saved.call.where) if of_part else now)",
        "        pass",
        "saved",
    ),
    Mutant(
        "other-batch-size-let-through-in-short-calls",
        FUNCTIONS,
        "(type(count) is int and count == n_values)",
        "type(count) is int",
        "saved",
    ),
    Mutant(
        "frozen-gradient-without-gamma",
        FUNCTIONAL,
        "saved.invstd if scale is None else scale * saved.invstd",
        "saved.invstd",
        "functional",
    ),
    # ---- how arrays are cut, rounded and stored ----
    Mutant(
        "first-strip-twice-and-the-last-never",
        PARTS,
        "(_ceil_div(g.whole.outer, outer) - 1 - i) * outer",
        "max(0, _ceil_div(g.whole.outer, outer) - 2 - i) * outer",
        "normalize",
    ),
    Mutant(
        "parameters-of-wide-rows-not-rotated",
        LOOP,
        "_of_channels(c, edges[k] % channels * j.itemsize)",
        "_of_channels(c, 0)",
        "normalize",
    ),
    Mutant(
        "blocks-cut-by-the-number-of-threads",
        DRIVERS,
        "    _cut_for_sums(&j.g)\n    sums = _new_sums(&j, 4)\n",
        "    _cut_for_sums(&j.g)\n"
        "    _cut(&j.g, max(1, j.g.part.outer // j.n_threads), j.g.part.channels, j.g.part.inner)\n"
        "    sums = _new_sums(&j, 4)\n",
        "kernels",
    ),
    Mutant(
        "rounding-decided-for-the-whole-array",
        MOMENTS,
        "None if fits.all() else fits.astype(np.bool_)",
        "None if fits.all() else np.zeros(fits.shape, np.bool_)",
        "normalize",
    ),
    Mutant(
        "rounding-never-refused",
        ALGEBRA,
        "    c->shift = shift;\n    return fits;",
        "    c->shift = shift;\n    return 1;",
        "moments",
    ),
    Mutant(
        "remainder-of-the-mean-lost", ALGEBRA, "    c->shift = shift;\n    return fits;", "    return fits;", "moments"
    ),
    Mutant(
        "streamed-in-place",
        NORMALIZE,
        "PAST_CACHE_BYTES and _is_apart(y, *others)",
        "PAST_CACHE_BYTES",
        "normalize",
    ),
    Mutant(
        "overlapping-out-not-noticed",
        PLAIN,
        "return same or _is_apart(a, b)",
        "return True",
        "small_calls functional",
    ),
    Mutant(
        "what-is-overwritten-computed-again",
        FUNCTIONS,
        "return not j.is_double and 0 < _resident_channels(j) < j.width",
        "return False",
        "normalize small_calls",
    ),
    # ---- values that do not count ----
    Mutant("padding-counts-in-planes", SUMS, "        d = counted_f64(r.counted + i, d, lanes);\n", "", "where"),
    Mutant("padding-counts-in-rows", SUMS, "n += *byte_at(a.counted, o, 0) != 0;", "n++;", "where"),
    Mutant("padding-of-another-row", STEPS, "data + value // j.narrow", "data + value // (j.narrow + 1)", "where"),
    Mutant("padding-from-the-first-row-on", STEPS, "value = j.first + at.outer", "value = at.outer", "where"),
    Mutant(
        "mask-of-a-part-of-a-register",
        AVX512,
        "_mm_maskz_loadu_epi8(FIRST(n), p);\n    return (vt_f64)",
        "_mm_set1_epi8(1);\n    return (vt_f64)",
        "where",
    ),
    Mutant("padding-of-the-next-plane", RESULTS, "run + end - inner, LINE", "run + end - inner + 1, LINE", "where"),
    Mutant("padding-not-begun-again", RESULTS, "            a.counted.data -= inner;\n", "            ;\n", "where"),
    Mutant("mask-overwritten-in-small-calls", PLAIN, "(out is None or _is_apart(", "(True or _is_apart(", "where"),
    Mutant("mask-overwritten", PASSES, "            where = where.copy()\n", "            pass\n", "where"),
    Mutant("rows-beyond-the-first-list-lost", SUMS, "first < p.outer; first += LISTED", "first < 1; first++", "where"),
    Mutant(
        "padding-acts-on-statistics",
        RESULTS,
        "v = each ?",
        "v = 1 ? v : each ?",
        "where",
    ),
    Mutant(
        "padding-counted-in-gradients", STEPS, "all_count if j.counts == NULL else j.counts[c]", "all_count", "where"
    ),
    Mutant("empty-samples-divided-by-0", STEPS, "if m.count > 0 else 0.0", "", "where"),
    Mutant(
        "nan-of-padding-in-gradients",
        PASSES,
        "self.x[...] = np.where(counts, x, x.dtype.type(0))",
        "self.x[...] = x",
        "where",
    ),
    Mutant(
        "gradients-of-what-was-overwritten",
        PASSES,
        "return any(a is not None and np.may_share",
        "return any(False and np.may_share",
        "where",
    ),
    Mutant("one-mask-for-all-samples", LAYOUT, "1 if where.shape[axis] == 1 and axis in kept else n", "n", "where"),
    Mutant("broadcast-positions-counted-once", LAYOUT, " for axis in kept]) * each", " for axis in kept])", "where"),
    Mutant(
        "weights-of-positions-by-sample",
        LAYOUT,
        "(weights.shape[1:] or (1,) * (len(shape) - 2))",
        "(1,) * (len(shape) - 2)",
        "where",
    ),
    # ---- as many threads as processors are idle ----
    Mutant("what-runs-not-asked", THREADS, "others = running_tasks() - 1;", "others = 0;", "dispatch"),
    Mutant("own-threads-counted-as-others", THREADS, "        others -= waiting_workers();", "        ;", "dispatch"),
    Mutant("sleeping-threads-taken-for-awake", THREADS, "< INTERRUPTED;", "< 1e9;", "dispatch"),
    Mutant("long-waits-not-noticed", THREADS, "if (waited > least_long_wait", "if (0", "dispatch"),
    Mutant("alone-for-ever", THREADS, "own + waited + ALONE_FACTOR * waited", "1e300", "dispatch"),
    Mutant("quota-ignored", THREADS, "usable = usable < n_usable ? usable : n_usable;", "", "dispatch"),
    Mutant("affinity-ignored", THREADS, "usable = omp_get_num_procs()", "usable = 1 << 20", "dispatch"),
    Mutant("asked-for-threads-reduced", JOB, "= _idle(j) if j.threads_vary else n_threads", "= _idle(j)", "dispatch"),
    Mutant("asked-once-for-a-long-call", LOOP, "if start and j.threads_vary:", "if False:", "dispatch"),
]


def main():
    """Try the mutants that the command line names, all by default; 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help="mutants to try; all by default")
    parser.add_argument("--list", action="store_true", help="print the names, if every text is found, and stop")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    asked = parser.parse_args()
    known = {mutant.name: mutant for mutant in MUTANTS}
    if len(known) < len(MUTANTS):
        parser.error("two mutants have one name")
    for mutant in MUTANTS:
        changed(ROOT / mutant.file, mutant.old, mutant.new)
    if asked.list:
        print("\n".join(known))
        return 0
    if unknown := set(asked.names) - set(known):
        parser.error(f"no such mutants: {', '.join(sorted(unknown))}")
    asked.names = asked.names or list(known)
    from bncpu import _kernels  # here alone: this file also stands in for the compiler, and may list without an install

    variants = _kernels.isa_variants()

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        base = Path(folder, "base")
        shutil.copytree(ROOT, base, ignore=shutil.ignore_patterns(*NOT_COPIED))
        # Where an installation puts it: an editable one would find the original.
        shutil.copytree(base / "gpu", base / "bncpu" / "gpu")
        hasten(base, variants[0])
        build(base)
        print(f"{'unchanged':44}", end=" ", flush=True)
        some = {file for name in asked.names for file in known[name].files}
        seen, seconds = killer(base, sorted(some) if len(asked.names) < len(known) else EVERYTHING)
        print(f"{seen or 'green, as it must be'}, {seconds:.0f} s", flush=True)
        if seen:
            return 1
        with concurrent.futures.ThreadPoolExecutor(asked.jobs) as pool:
            results = list(pool.map(lambda name: tried(known[name], base, variants), asked.names))
    survivors = [name for name, seen in results if seen is None]
    absent = [name for name, seen in results if seen == ""]
    print(f"\n{len(results) - len(survivors) - len(absent)} of {len(results)} mutants killed", end="")
    print(f"; of variants that this machine lacks: {', '.join(absent)}" if absent else "", end="")
    print(f"; SURVIVED: {', '.join(survivors)}" if survivors else "")
    return 1 if survivors else 0


def tried(mutant, base, variants):
    """Name of the mutant, and the test that goes red: None if none does, "" if this machine cannot tell."""
    if mutant.needs and mutant.needs not in variants:
        print(f"{mutant.name:44} this processor has no {mutant.needs}", flush=True)
        return mutant.name, ""
    tree = base.parent / mutant.name
    shutil.copytree(base, tree)
    path = tree / mutant.file
    path.write_text(changed(path, mutant.old, mutant.new))
    start = time.perf_counter()
    if path.name == "build_ext.py" or path.suffix != ".py":
        build(tree, force=path.name == "build_ext.py")
    seen, _ = killer(tree, mutant.files)
    if seen is None:
        rest = [*EVERYTHING, *(f"--ignore={file}" for file in (BITS, *mutant.files))]
        seen, _ = killer(tree, rest)
    shutil.rmtree(tree)
    print(f"{mutant.name:44} {seen or 'SURVIVED'}, {time.perf_counter() - start:.0f} s", flush=True)
    return mutant.name, seen


def changed(path, old, new):
    """The text of `path` with `new` for `old`, which must occur once."""
    text = path.read_text()
    if text.count(old) != 1:
        raise SystemExit(f"in {path} this must occur once, not {text.count(old)} times:\n{old}")
    return text.replace(old, new)


def hasten(tree, fastest):
    """Make building quick: little is optimized, and besides plain C only the fastest variant is left."""
    source = tree / "bncpu" / "src"
    quick = {
        tree / "build_ext.py": ('"-O3"', '"-O1"'),
        source / "leaves_unit.h": ('UNROLL _Pragma("GCC unroll 16")', "UNROLL"),
    }
    for path, (old, new) in quick.items():
        path.write_text(changed(path, old, new))
    for variant in {"avx2", "avx512"} - {fastest}:
        found = source / "variants.h"
        found.write_text(changed(found, f"found[n++] = (bn_leaves *)&bn_leaves_{variant};", ";"))
        (source / f"leaves_{variant}.c").write_text("typedef int nothing;\n")


def build(tree, *, force=False):
    """Compile the extensions in place; objects of the same text are compiled once."""
    command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "build_ext", "--inplace"]
    stand_in = shlex.join([sys.executable, __file__, "--compile", str(tree.parent / "objects")])
    environment = os.environ | {"CC": f"{stand_in} {os.environ.get('CC', 'cc')}"}
    done = subprocess.run(
        [*command, *(["--force"] if force else [])],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{tree.name} does not build:\n{done.stdout}\n{done.stderr}")


def compiled(objects, *command):
    """Stand in for the C compiler, with no work for a text that was compiled before."""
    if "-c" not in command or "-o" not in command:
        return subprocess.call(command)
    at = command.index("-o")
    rest = command[:at] + command[at + 2 :]
    text = subprocess.run(["-E" if word == "-c" else word for word in rest], stdout=subprocess.PIPE, check=True).stdout
    kept = Path(objects, hashlib.sha256(repr(rest).encode() + text).hexdigest())
    if not kept.exists():
        if code := subprocess.call(command):
            return code
        kept.parent.mkdir(exist_ok=True)
        os.replace(shutil.copy(command[at + 1], f"{kept}-{os.getpid()}"), kept)
    shutil.copy(kept, command[at + 1])
    return 0


def killer(tree, tests):
    """The first test of `tests` that goes red in `tree`, None if none does, and the seconds that took."""
    start = time.perf_counter()
    pytest = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-x", "-q", "-m", "", "-p", "no:cacheprovider", *tests], cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = pytest.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(pytest.pid, signal.SIGKILL)
        pytest.communicate()
        return f"hang (no end after {LIMIT} s)", time.perf_counter() - start
    seconds = time.perf_counter() - start
    if pytest.returncode == 0:
        return None, seconds
    red = re.search(r"^(?:FAILED|ERROR) (.+)$", output, flags=re.MULTILINE)
    hang = "hang in " if "+++ Timeout +++" in output or "Failed: Timeout" in output else ""
    if red is not None:
        return hang + red[1], seconds
    if pytest.returncode > 1 and not hang:  # pytest's own errors: no test was run
        raise SystemExit(f"{tree.name}: {output}")
    return hang or f"crash (signal {-pytest.returncode})", seconds


if __name__ == "__main__":
    sys.exit(compiled(*sys.argv[2:]) if sys.argv[1:2] == ["--compile"] else main())
