"""Every error a user can cause, each with the value that was wrong and what to do about it.

All of them are `PerSimError`s, and also the built-in error a caller would expect (`ValueError`, `KeyError`, …),
so that both ``except PerSimError`` and ``except ValueError`` work.
"""


class PerSimError(Exception):
    """Base of every error that a user of persim-gym can cause."""


class UnknownNameError(PerSimError, KeyError):
    """A task, agent, configuration or policy that does not exist."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return Exception.__str__(self)


class InvalidDataError(PerSimError, ValueError):
    """A log whose arrays do not fit together, or that holds NaN, infinity or actions outside the space."""


class InvalidStateError(PerSimError, ValueError):
    """A state or observation of the wrong shape, or one that is not finite."""


class InvalidActionError(PerSimError, ValueError):
    """An action of the wrong shape or outside the action space."""


class InvalidArgumentError(PerSimError, ValueError):
    """An argument out of its range."""


class FileFormatError(PerSimError, ValueError):
    """A file that is damaged, not ours, of a newer format, or made for something else."""


class MissingFileError(PerSimError, FileNotFoundError):
    """A file that is not there."""


class FileWriteError(PerSimError, OSError):
    """A file cannot be written where it is wanted."""


class ModelHomeError(FileWriteError):
    """The model home cannot be written."""


class MissingStatisticsError(PerSimError, ValueError):
    """The ensemble lacks statistics of its agents; the message names the call that computes them."""


class OutOfMemoryError(PerSimError, MemoryError):
    """The memory of the machine or of the GPU does not suffice; the message names what to lower."""


class EpisodeOverError(PerSimError, RuntimeError):
    """`step` was called before `reset`, or after the end of an episode."""


class NonFiniteReturnError(PerSimError, ArithmeticError):
    """Every candidate of a plan has a return that is not a number."""


class TrainingDivergedError(PerSimError, ArithmeticError):
    """The training loss is no longer finite."""


class NoRendererError(PerSimError, TypeError):
    """Rendering was asked for of a task that has no renderer.

    A `TypeError`, which Stable-Baselines3's `make_vec_env` takes as a sign to make the environment without pictures.
    """


class MissingExtraError(PerSimError, ImportError):
    """An optional library is needed; the message names the extra to install."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f'{library} is needed for this: pip install "persim-gym[{extra}]"', name=library)
