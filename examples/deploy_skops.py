"""A fitted pipeline in a file that executes nothing when it is loaded: skops, with our types trusted by name.

Needs skops.
"""

import numpy as np
import skops.io
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from bncpu import BatchNormTransformer

OURS = [
    "bncpu.running.Cumulative",
    "bncpu.running.Running",
    "bncpu.state.Parameters",
    "bncpu.state.State",
    "bncpu.transformer.BatchNormTransformer",
]

X, y = load_wine(return_X_y=True)
pipeline = make_pipeline(BatchNormTransformer(), LogisticRegression()).fit(X, y)
file = skops.io.dumps(pipeline)
again = skops.io.loads(file, trusted=OURS)

print("only ours need trust:", skops.io.get_untrusted_types(data=file) == OURS)
print("same probabilities:", np.array_equal(again.predict_proba(X), pipeline.predict_proba(X)))
again[0].partial_fit(X)
print("and it learns on:", again[0].n_samples_seen_ == 2 * len(X))
