"""Write tests/data/onnx_node_tests.json: the node tests that come with ONNX, for the operators we have.

    pip install -r comparisons/requirements.txt && python comparisons/golden_onnx.py

The tests whose names end in ``_expanded`` hold the same arrays, with the operator written out as a graph: left out.
"""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

OPERATORS = ("batchnorm", "instancenorm", "group_normalization", "layer_normalization", "rms_normalization")
FOLDER = "onnx/backend/test/data/node"
DATA = Path(__file__).parents[1] / "tests" / "data"
SOURCE = {
    "made by": "comparisons/golden_onnx.py",
    "source": f"ONNX {onnx.__version__}, {FOLDER}/test_*",
    "copyright": "Copyright (c) ONNX Project Contributors",
    "licence": "Apache-2.0, see LICENSE-onnx.txt beside this file",
    "changes": "binary protobuf tensors written as JSON numbers, the shortest that give back the same float32",
}


def read_tensor(path):
    """A saved tensor as shape and numbers, exactly."""
    array = numpy_helper.to_array(onnx.load_tensor(path))
    if array.dtype != np.float32:
        raise TypeError(f"{path} must hold float32, got {array.dtype}")
    numbers = [float(str(value)) for value in array.ravel()]
    if not np.array_equal(np.array(numbers).astype(np.float32), array.ravel()):
        raise ValueError(f"{path} does not survive the way through JSON")
    return {"shape": list(array.shape), "values": numbers}


def read_case(folder):
    """One node with its attributes, inputs and expected outputs."""
    model = onnx.load(folder / "model.onnx")
    (node,) = model.graph.node
    data = folder / "test_data_set_0"
    return {
        "name": folder.name.removeprefix("test_"),
        "operator": node.op_type,
        "opset": model.opset_import[0].version,
        "attributes": {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
        "inputs": [read_tensor(data / f"input_{i}.pb") for i in range(len(node.input))],
        "outputs": {name: read_tensor(data / f"output_{i}.pb") for i, name in enumerate(node.output)},
    }


if __name__ == "__main__":
    root = Path(onnx.__file__).parents[1] / FOLDER
    folders = sorted(f for operator in OPERATORS for f in root.glob(f"test_{operator}_*") if "_expanded" not in f.name)
    lines = ",\n".join(json.dumps(read_case(folder)) for folder in folders)
    (DATA / "onnx_node_tests.json").write_text(f'{json.dumps(SOURCE)[:-1]}, "cases": [\n{lines}\n]}}\n')
    print(f"{len(folders)} cases")
