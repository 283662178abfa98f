"""Main memory that a process keeps for its next tensors."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # numbers of `mallopt`'s settings in glibc's malloc.h
_AHEAD = 64 * 2**20  # bytes that are fetched with what is asked for


def keep_freed_memory() -> bool:
    """Has the process keep the memory of tensors that are gone, for those to come, until it ends.

    Linux's C library gives the memory of each larger tensor back to the system, and the system clears it anew for the
    next one, page by page. A step of training on a CPU allocates gigabytes, and can take twice as long for it. The
    process then stays as large as it was at its largest, and a little larger than that, since what is kept comes in
    pieces. Results are the same. It is a matter of the main thread, where training runs, and not of a GPU's memory,
    which PyTorch keeps by itself.

    `train.py` does it; a script of one's own can do so at its start.

    Returns:
        Whether it was done: not on other systems, and not where environment variables (`MALLOC_…`, `GLIBC_TUNABLES`)
        have their own say.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # All three belong together: of two of them alone, each tensor would be a piece of memory of its own as before.
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _AHEAD))
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in settings)
