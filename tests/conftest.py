import os

import pytest
from hypothesis import settings

os.environ["SCIPY_ARRAY_API"] = "1"  # before SciPy is imported: scikit-learn checks array-API input only then

from bncpu import _kernels, sklearn

# A busy machine is no failure.
settings.register_profile("bncpu", deadline=None)
settings.load_profile("bncpu")


@pytest.fixture(params=_kernels.isa_variants())
def isa(request):
    """Runs the test once for every instruction-set variant this machine has."""
    before = _kernels.isa()
    _kernels.use_isa(request.param)
    yield request.param
    _kernels.use_isa(before)


@pytest.fixture
def called():
    """What has been called of bncpu.sklearn since the test began, and by what code it was done."""
    before = sklearn.calls()
    return lambda: {call: n - before.get(call, 0) for call, n in sklearn.calls().items() if n > before.get(call, 0)}
