"""A client: the statistics of anemoi-datasets, which trains weather models, learned and merged by BatchNormTransformer.

    pip install anemoi-datasets pytest && pip download --no-binary :all: --no-deps anemoi-datasets
    tar xf anemoi_datasets-*.tar.gz && cd anemoi_datasets-*/
    PYTHONPATH=.../examples pytest -p client_anemoi tests/create/test_statistics.py    # its own tests, over ours

Minimum and maximum stay its own. Its loop over columns in Python becomes one pass; its merge keeps all digits.
"""

import copy

import numpy as np
from anemoi.datasets.create.statistics import _CollectorBase as Collector

from bncpu import BatchNormTransformer

their_merge = Collector._merge


def update(self, data):
    """Learn from rows, in the place of the collector's own."""
    if len(data):
        shown(self, getattr(self, "learned", BatchNormTransformer()).partial_fit(data))
        self._min = np.fmin(self._min, np.fmin.reduce(data, axis=0))
        self._max = np.fmax(self._max, np.fmax.reduce(data, axis=0))


def merge(cls, a, b, result):
    """Merge two collectors, in the place of the collector's own."""
    their_merge(a, b, result)
    learned = [part.learned for part in (a, b) if hasattr(part, "learned")]
    if learned:
        shown(result, copy.deepcopy(learned[0]) if len(learned) == 1 else copy.deepcopy(learned[0]).merge(learned[1]))
    return result


def shown(self, learned):
    """What the collector's other methods read."""
    self.learned, self._count = learned, np.zeros_like(self._count) + learned.n_samples_seen_
    self._mean, self._m2 = np.nan_to_num(learned.running_mean_), np.nan_to_num(learned.running_var_) * self._count


Collector.update, Collector._merge = update, classmethod(merge)

if __name__ == "__main__":
    fields = np.random.default_rng(0).normal([280, 1e5], [10, 1], size=(10_000, 2))  # kelvin and pascal
    fields[:100, 0] = np.nan
    first, second = Collector(["t", "p"]), Collector(["t", "p"])
    for part in np.array_split(fields[:3000], 7):
        first.update(part)
    second.update(fields[3000:])
    found = first.merge(second).statistics()
    print("mean:", np.allclose(found["mean"], np.nanmean(fields, axis=0), rtol=1e-15))
    print("standard deviation:", np.allclose(found["stdev"], np.nanstd(fields, axis=0), rtol=1e-13))
