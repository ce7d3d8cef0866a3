"""A pipeline for a server without Python: scikit-learn's wine, normalized and classified by ONNX Runtime.

Needs the extra `onnx`, and onnxruntime to run what was converted.
"""

import numpy as np
import onnxruntime
import skl2onnx
from sklearn.datasets import load_wine
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier

import bncpu.onnx
from bncpu import BatchNormTransformer

X, y = load_wine(return_X_y=True)
X = X.astype(np.float32)
pipeline = make_pipeline(BatchNormTransformer(), DecisionTreeClassifier(max_depth=3, random_state=0)).fit(X, y)

bncpu.onnx.register()
model = skl2onnx.to_onnx(pipeline, X[:1], options={"zipmap": False})
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
labels, probabilities = session.run(None, {"X": X})

print("nodes:", [node.op_type for node in model.graph.node][:2])
print("same labels:", np.array_equal(labels, pipeline.predict(X)))
print("probabilities differ by less than 1e-6:", np.abs(probabilities - pipeline.predict_proba(X)).max() < 1e-6)
