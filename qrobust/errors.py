"""Every exception that qrobust raises on purpose.

Each is also a built-in exception, so that callers may catch either. A message is one line: the thing, its value, the
limit, the next step.
"""

from __future__ import annotations


class QRobustError(Exception):
    """Base of all errors that qrobust raises on purpose."""


class ShapeError(QRobustError, ValueError):
    """Two arrays, or an array and a layer, do not fit together."""


class NumberError(QRobustError, ValueError):
    """A number is not finite, has the wrong sign, or lies outside its limits."""


class DomainError(QRobustError, ValueError):
    """A set of inputs is empty, or a point lies outside it."""


class ModelFileError(QRobustError, ValueError):
    """A model file is missing, damaged, or not what its name says."""


class DatasetError(QRobustError, ValueError):
    """A table of data is missing, damaged, or has a cell that cannot be read."""


class PlanError(QRobustError, ValueError):
    """A sign-off plan has a key that is unknown, missing or wrong; the message names the line and the key."""


class UnsupportedError(QRobustError, NotImplementedError):
    """A backend or a file format cannot express what was asked; raised before anything runs."""


class ResourceError(QRobustError, MemoryError):
    """A method would need more memory than it may take; raised before any is taken."""


class BackendUnavailableError(QRobustError, ImportError):
    """A backend's solver is not installed; the message names the command that installs it."""


class OutputError(QRobustError, OSError):
    """A result could not be written; nothing was left half-written."""


class UnsoundAnswerError(QRobustError, RuntimeError):
    """A backend's claim was refuted by the exact check. Always a bug, here or in a solver."""


class LawBrokenError(UnsoundAnswerError):
    """Results contradict a law that every right result obeys. Always a bug."""


class EnclosureError(QRobustError, ArithmeticError):
    """A lower bound above its upper bound, or a NaN, in certified arithmetic. Always a bug."""
