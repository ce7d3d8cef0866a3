"""One step less in production: the normalizer folded into the linear model behind it."""

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from bncpu import BatchNormTransformer, simplify

X, y = load_breast_cancer(return_X_y=True)
pipeline = make_pipeline(BatchNormTransformer(), LogisticRegression()).fit(X, y)
deployed = simplify(pipeline)

print("steps:", [name for name, _ in pipeline.steps], "->", [name for name, _ in deployed.steps])
print("same labels:", np.array_equal(deployed.predict(X), pipeline.predict(X)))
difference = np.abs(deployed.predict_proba(X) - pipeline.predict_proba(X)).max()
print("probabilities differ by less than 1e-12:", difference < 1e-12)
