"""Computations of native kernels recorded once and repeated in one call (`plait.native.tape`), for the model to use."""

from plait.native.tape import TapeError as TapeError
from plait.native.tape import record as record
