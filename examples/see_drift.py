"""Has the data changed since training? Numbers and pictures, on a sensor that is slowly fouled.

The stream is made of scikit-learn's breast cancer data, shuffled, with a feature that drifts from the middle on. Saves
drift.png and stream.png in the folder that is given, or in a new temporary one. Needs the extra `plot`.

    python see_drift.py [folder]
"""

import pathlib
import sys
import tempfile

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer

from bncpu import BatchNormDisplay, BatchNormTransformer

folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="bncpu-"))
print("pictures:", folder)
data = load_breast_cancer(as_frame=True).data.iloc[:, :6].sample(frac=6, replace=True, random_state=0)
trained, new = data.iloc[:1700], data.iloc[1700:].copy()
spread = trained["mean texture"].std()
new["mean texture"] += np.linspace(0, 2 * spread, len(new))

bn = BatchNormTransformer(eps=1e-5).fit(trained)
report = bn.report(new)
print(report)

BatchNormDisplay.from_estimator(bn, new).figure_.savefig(folder / "drift.png", dpi=120)
stream = pd.concat([trained, new])
batches = [stream.iloc[start : start + 34] for start in range(0, len(stream), 34)]
for name, forgetting in (("never", None), ("halflife", 300)):
    settled = BatchNormDisplay.from_stream(BatchNormTransformer(halflife=forgetting), batches, features=[0, 1])
    print(name, "forgetting, last running mean of the drifting feature:", settled.running_mean[-1, 1].round(1))
settled.figure_.savefig(folder / "stream.png", dpi=120)
