"""libvips, set up: one thread, nothing kept, no loader but those asked for, none of its words in Python's hands."""

import os

os.environ.setdefault("VIPS_WARNING", "0")  # libvips looks as it loads: no line of its own among the log's
import pyvips

# pyvips hands libvips's warnings to Python's logging, from threads that libvips starts: Python's collector may then run there, where it
# drops libvips's own objects and aborts the process. The errors that count come back to the caller in any case.
if pyvips._log_handler_id is not None:
    pyvips._remove_handler(b"VIPS", pyvips._log_handler_id)
    pyvips._log_handler_id = None  # not once more at the end

pyvips.concurrency_set(1)
pyvips.cache_set_max(0)
pyvips.operation_block_set("VipsForeignLoad", True)
for _loader in ("VipsForeignLoadPng", "VipsForeignLoadJpeg", "VipsForeignLoadTiff"):
    pyvips.operation_block_set(_loader, False)

__all__ = ["pyvips"]
