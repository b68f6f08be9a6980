"""Every error that Millstream raises, in one tree.

    MillstreamError
    ├── SettingError         an argument, name or combination that cannot work        (also a ValueError)
    ├── DataError            records are not as declared                              (also a ValueError)
    ├── ModelError           the model cannot do what was asked of it                 (also a ValueError)
    │   └── LearningError    it failed at a record; those before it were learned      (also a ValueError)
    ├── CheckpointError      no checkpoint, a damaged one, or one of something else   (also a ValueError)
    ├── DivergenceError      too many updates in a row were not finite                (also an ArithmeticError)
    ├── StorageError         a disk or folder did not take or give what it should     (also an OSError)
    └── MissingPackageError  an optional package is not installed                     (also an ImportError)

Each says three things in one line: what was got, what was wanted, and what to do. The command line prints that line and
exits with 2; errors of brokers and of the operating system are turned into these at the boundary.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "CheckpointError",
    "DataError",
    "DivergenceError",
    "LearningError",
    "MillstreamError",
    "MissingPackageError",
    "ModelError",
    "SettingError",
    "StorageError",
    "missing_package",
]


class MillstreamError(Exception):
    """The root of the tree: ``except MillstreamError`` catches all that is ours.

    >>> raise SettingError(got="--model mpl:256", wanted="a known model", do="try mlp:256")
    Traceback (most recent call last):
    millstream.errors.SettingError: got --model mpl:256; wanted a known model; try mlp:256
    """

    def __init__(self, *, got: str, wanted: str, do: str) -> None:
        self.got, self.wanted, self.do = got, wanted, do
        super().__init__(f"got {got}; wanted {wanted}; {do}")

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default protocol, and errors cross process boundaries.
        return _rebuild, (type(self), self.__dict__)


class SettingError(MillstreamError, ValueError):
    """An argument, a name or a combination of them cannot work."""


class DataError(MillstreamError, ValueError):
    """Records are not as declared; says the file and line where there is one."""


class ModelError(MillstreamError, ValueError):
    """The model, its loss or its optimizer cannot do what was asked of it."""


class LearningError(ModelError):
    """The model, its loss or its optimizer failed within a chunk, whose first ``num_learned`` places were learned."""

    def __init__(self, *, got: str, wanted: str, do: str, num_learned: int = 0) -> None:
        super().__init__(got=got, wanted=wanted, do=do)
        self.num_learned = num_learned


class CheckpointError(MillstreamError, ValueError):
    """There is no checkpoint, it is damaged, or it belongs to something else."""


class DivergenceError(MillstreamError, ArithmeticError):
    """Too many updates in a row had a loss or gradient that is not finite; the run stands at its last good state."""


class StorageError(MillstreamError, OSError):
    """A disk or folder did not take or give what it should: full, not writable, gone."""


class MissingPackageError(MillstreamError, ImportError):
    """An optional package is not installed; ``do`` holds the pip command."""


def missing_package(package: str, use: str, extra: str) -> MissingPackageError:
    """That a package is not installed, what for, and which extra brings it.

    >>> print(missing_package("fastavro", "Avro", "avro"))
    got no package fastavro; wanted it, for Avro; pip install 'millstream[avro]'
    """
    return MissingPackageError(
        got=f"no package {package}", wanted=f"it, for {use}", do=f"pip install 'millstream[{extra}]'"
    )


def _rebuild(kind: type[MillstreamError], facts: dict[str, Any]) -> MillstreamError:
    return kind(**facts)
