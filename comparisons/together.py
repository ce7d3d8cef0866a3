"""PyTorch, scikit-learn and bncpu in one process, in every order: each brings an OpenMP of its own.

For each order of loading, in a process of its own: each library computes in turn, twice, then all of them at once in
threads; then bncpu does in a forked child. Results of bncpu must have the bits they have alone, those of the others be
right.

    python comparisons/together.py
"""

import hashlib
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

SECONDS = 120


def ours():
    """A digest of a pass forward and backward with four threads."""
    import numpy as np

    import bncpu

    x, dy = np.random.default_rng(0).standard_normal((2, 16, 32, 56, 56), dtype=np.float32)
    y, saved = bncpu.batch_norm_forward(x, n_threads=4)
    found = [y, *bncpu.batch_norm_backward(dy, x, saved, n_threads=4)]
    rows = x.reshape(-1, 32)
    found.append(bncpu.BatchNormTransformer(n_threads=4).partial_fit(rows).transform(rows))
    return hashlib.sha256(b"".join(a.tobytes() for a in found)).hexdigest()


def of_scikit_learn():
    """Neighbours against all distances, with OpenMP of scikit-learn."""
    import numpy as np
    from sklearn.metrics import pairwise_distances_argmin

    A, B = (np.random.default_rng(1).standard_normal((n, 8)) for n in (4000, 200))
    nearest = ((A[:, None] - B) ** 2).sum(axis=2).argmin(axis=1)
    return bool((pairwise_distances_argmin(A, B) == nearest).all())


def of_pytorch():
    """Batch norm against NumPy, with four threads of PyTorch."""
    import numpy as np
    import torch

    torch.set_num_threads(4)
    x = np.random.default_rng(2).standard_normal((16, 32, 56, 56))
    y = torch.nn.functional.batch_norm(torch.from_numpy(x), None, None, training=True).numpy()
    axes = (0, 2, 3)
    expected = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    return bool(np.allclose(y, expected, rtol=0, atol=1e-12))


USES = {"bncpu": ours, "scikit-learn": of_scikit_learn, "PyTorch": of_pytorch}


def use(order):
    """What the libraries give, loaded in this order."""
    found = {name: set() for name in order}
    for name in [*order, *order]:
        found[name].add(USES[name]())
    with ThreadPoolExecutor(6) as pool:
        for name, result in zip([*order, *order], pool.map(lambda name: USES[name](), [*order, *order]), strict=True):
            found[name].add(result)
    if hasattr(os, "fork"):  # PyTorch and scikit-learn promise nothing about forks
        alone = found["bncpu"]
        child = os.fork()
        if child == 0:
            os._exit(0 if {ours()} == alone else 1)
        found["fork"] = {os.waitpid(child, 0)[1] == 0}
    return found


def main():
    """Print a line for each order; 1 if one is wrong."""
    if len(sys.argv) > 1:
        print(use(sys.argv[1:]))
        return 0
    alone = ours()
    wrong = 0
    for order in itertools.permutations(USES):
        try:
            done = subprocess.run(
                [sys.executable, __file__, *order], capture_output=True, text=True, timeout=SECONDS, check=False
            )
            expected = {name: {alone if name == "bncpu" else True} for name in order}
            if hasattr(os, "fork"):
                expected["fork"] = {True}
            result = "right" if done.stdout.strip() == str(expected) else f"wrong: {done.stdout}{done.stderr}"
        except subprocess.TimeoutExpired:
            result = f"hung: no answer in {SECONDS} s"
        wrong += result != "right"
        print(f"{', '.join(order):36}{result}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
