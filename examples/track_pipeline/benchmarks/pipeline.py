"""What a call of a pipeline costs, in calls of the same pipeline with StandardScaler."""

import time

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bncpu import BatchNormTransformer


class Pipeline:
    """Put your own steps and data into `setup`."""

    params = (["fit", "predict"],)
    param_names = ("method",)
    unit = "times StandardScaler's"
    shape = (500_000, 32)

    def setup(self, method):
        """Prepare a call with either scaler."""
        X = np.random.default_rng(0).standard_normal(self.shape, dtype=np.float32)
        y = X[:, 0]
        self.arguments = (X, y) if method == "fit" else (X,)
        pipelines = [make_pipeline(scaler, Ridge()).fit(X, y) for scaler in (BatchNormTransformer(), StandardScaler())]
        self.ours, self.theirs = (getattr(pipeline, method) for pipeline in pipelines)

    def seconds(self, call):
        """Time one call."""
        start = time.perf_counter()
        call(*self.arguments)
        return time.perf_counter() - start

    def track_ratio(self, _):
        """Call them in turns, so that whatever else the machine does meets both alike."""
        ratios = [self.seconds(self.ours) / self.seconds(self.theirs) for _ in range(15)]
        return round(float(np.median(ratios)), 3)
