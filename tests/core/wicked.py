"""A decoding child whose BMP decoder does what a file's last bytes say, as a broken library might. Its other decoders are the true ones."""

import os
import sys
import time

from core import decoder, decoding
from core.metadata import Metadata


def open_bmp(data, limits):
    _, asked, deed = data[:].rpartition(b"do:")
    deed = deed.decode() if asked else ""
    if deed == "crash":
        os.abort()
    if deed == "sleep":
        time.sleep(1000)
    if deed == "spin":
        while True:
            pass
    if deed == "eat":
        hoard = []
        while True:
            hoard.append(b"x" * (8 << 20))
    if deed == "babble":
        os.write(int(sys.argv[1]), b"\x10\0\0\0 this is no JSON")
    if deed == "lie":
        return decoding.Opened("bmp", 1, 9, 9, 81, lambda go_on: iter([(decoding.Frame(9, 10**9, 3, False, "uint8", Metadata()), None)]))
    if deed in ("halt", "boast", "stammer"):
        frame = decoding.Frame(16, 9, 3, False, "uint8", Metadata())
        return decoding.Opened("bmp", 1, 9, 16, 144, lambda go_on: iter([(frame, FILLS[deed])]))
    return decoding.open_bmp(data, limits)


def halt(colours, alpha, passed):
    """The first rows are there, the rest never comes."""
    colours[:4] = 7
    passed(4)
    time.sleep(1000)


FILLS = {"halt": halt, "boast": lambda colours, alpha, passed: passed(17), "stammer": lambda colours, alpha, passed: passed("16")}


if __name__ == "__main__":
    decoding.OPENERS["open_bmp"] = open_bmp
    decoder.OPENING_SECONDS = 0.2
    decoder.main(int(sys.argv[1]))
