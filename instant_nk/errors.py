"""The exception family: one class per thing that can be wrong, so that callers and users can tell them apart.

A message says what is wrong, where, what was wanted, what was found, and what to do next. The command line prints
the message alone and exits with the class's code; anything that is not an `InstantNKError` is a bug and keeps its traceback.
"""


class InstantNKError(Exception):
    """Base of every error that is the caller's to mend."""

    exit_code = 1


class ConfigError(InstantNKError):
    """A configuration key is unknown, of the wrong type, or impossible in combination."""

    exit_code = 2


class DataError(InstantNKError):
    """The capture (images, cameras, masks, external meshes or ED folders) is not sound."""

    exit_code = 3


class ContractError(InstantNKError):
    """An artifact under results/ is missing, truncated, of another format, or from another configuration."""

    exit_code = 4


class NumericalError(InstantNKError):
    """Optimisation produced NaN or diverged; the message names step, frame and energy."""

    exit_code = 5


class BackendError(InstantNKError):
    """A kernel backend was asked for that cannot serve the operation on this machine."""

    exit_code = 6
