"""An array of Dask on a cluster: fit is one pass over its blocks where they lie, transform stays lazy.

With `Client("tcp://...")` the cluster is yours. A DataFrame from `dask.dataframe.read_parquet` is taken in the same
way.
"""

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

from bncpu import BatchNormTransformer

if __name__ == "__main__":
    X = da.random.default_rng(0).normal(1000, 1, size=(10_000, 8), chunks=(1_000, 8))
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        bn = BatchNormTransformer().fit(X)
        Y = bn.transform(X)
        print("lazy:", type(Y) is type(X), Y.chunks == X.chunks)
        values = X.compute()
        print("transformed:", np.array_equal(Y.compute(), bn.transform(values)))
    print("rows:", bn.n_samples_seen_)
    print("equal to 12 digits:", np.allclose(bn.var_, values.var(axis=0), rtol=1e-12, atol=0))
