"""Makes Triton's interpreter fit for kernels with loops and helpers."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def a_better_interpreter():
    """Mends two things in the interpreter of Triton 3.6.

    Bounds of loops that are known on the device only are arrays of one element there, which NumPy 2.4 no longer makes
    numbers of. And it prepares the language's modules at each call of a helper, which once a launch does as well.
    """
    if torch.cuda.is_available():
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    patch_tensor = interpreter._patch_lang_tensor
    launch = interpreter.GridExecutor.__call__
    prepared: set[int] = set()

    def patch_and_mend(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def launch_afresh(self, *args, **kwargs):
        prepared.clear()
        return launch(self, *args, **kwargs)

    def call_helper(self, *args, **kwargs):
        if id(self.fn.__globals__) not in prepared:
            prepared.add(id(self.fn.__globals__))
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    interpreter._patch_lang_tensor = patch_and_mend
    interpreter.GridExecutor.__call__ = launch_afresh
    interpreter.InterpretedFunction.__call__ = call_helper
