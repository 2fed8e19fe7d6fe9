"""The stack that signal handlers of the calling thread run on. Linux alone."""

import ctypes


class _Stack(ctypes.Structure):
    """`stack_t` of signal.h."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> tuple[int | None, int]:
    """Its address and its size in bytes."""
    stack = _Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.address, stack.size
