"""The batch norm of a trained network in a scikit-learn pipeline, and back. PyTorch is not needed: arrays are enough.

With PyTorch, `state` is `network.state_dict()`, and the last line is
`network.norm.load_state_dict({name: torch.from_numpy(a) for name, a in layer.items()})`.
"""

import numpy as np
from sklearn.datasets import load_digits

from bncpu import BatchNormTransformer

X = load_digits().data[:, 20:24]
state = {  # what a network learned from other pictures
    "norm.weight": np.array([1.5, 1.0, 0.5, 2.0]),
    "norm.bias": np.array([0.0, 0.1, 0.2, 0.3]),
    "norm.running_mean": np.array([7.0, 8.0, 7.0, 3.0]),
    "norm.running_var": np.array([30.0, 35.0, 33.0, 20.0]),
    "norm.num_batches_tracked": np.array(938),
}

frozen = BatchNormTransformer.from_torch(state, prefix="norm.")
expected = (X - state["norm.running_mean"]) / np.sqrt(state["norm.running_var"] + 1e-5)
expected = expected * state["norm.weight"] + state["norm.bias"]
print("as the layer in eval():", np.allclose(frozen.transform(X), expected, rtol=1e-13, atol=1e-13))

# The layer's momentum is 0.1: the weight of the new value. Ours is that of the old one.
learning = BatchNormTransformer.from_torch(state, prefix="norm.", momentum=0.9)
for batch in np.array_split(X, 20):
    learning.partial_fit(batch)
print("adapted mean:", learning.running_mean_.round(1), "mean of the digits:", X.mean(axis=0).round(1))

layer = learning.to_torch()
print("back:", {name: a.shape for name, a in layer.items()}, int(layer["num_batches_tracked"]), "batches")
