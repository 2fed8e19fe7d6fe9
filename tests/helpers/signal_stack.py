"""The stack that signal handlers of the calling thread run on."""

import ctypes
import sys


class _Stack(ctypes.Structure):
    """`stack_t` of signal.h, in which macOS has flags last."""

    _flags = ("flags", ctypes.c_int)
    _size = ("size", ctypes.c_size_t)
    _rest = (_size, _flags) if sys.platform == "darwin" else (_flags, _size)
    _fields_ = (("address", ctypes.c_void_p), *_rest)


def signal_stack() -> tuple[int | None, int]:
    """Its address and its size in bytes."""
    stack = _Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.address, stack.size
