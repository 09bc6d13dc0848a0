"""Makes Triton's interpreter run kernels with loops whose bounds are known on the device only."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def loops_with_bounds_of_the_device():
    """Triton 3.6's interpreter makes loop bounds of arrays with one element, which NumPy 2.4 no longer converts."""
    if torch.cuda.is_available():
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_mend
