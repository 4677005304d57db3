"""Errors of `qat`.

```
QatError
├── ConfigError        a setting that is unknown, mistyped or out of range
├── DataError          a data archive or folder that is missing or damaged
├── TraceError         a module that cannot be mapped to hardware
├── CheckpointError    weights that are missing, damaged, of other shapes, or could not be written
├── TrainingError      training that diverged (NaN loss)
├── SearchError        a search that cannot start or cannot go on
├── RunFolderError     a run folder that cannot be written or read
├── ExportError        a network that cannot be lowered to integers (accumulator overflow, ...)
└── PackedFormatError  packed files that are damaged, truncated, swapped or of another version
```
"""


class QatError(Exception):
    """Base of every error that `qat` raises on purpose."""


class ConfigError(QatError, ValueError):
    """A setting is unknown, mistyped or out of range; the message names it."""


class DataError(QatError):
    """A data archive or folder is missing or damaged."""


class TraceError(QatError):
    """A module cannot be mapped to hardware; the message names it."""


class CheckpointError(QatError):
    """Weights are missing, damaged, of other shapes, or could not be written."""


class TrainingError(QatError):
    """Training diverged; the message says at which step and what to try."""


class SearchError(QatError):
    """A search cannot start or cannot go on."""


class RunFolderError(QatError):
    """A run folder cannot be written or read."""


class ExportError(QatError):
    """A network cannot be lowered to integers; the message names the layer and the cure."""


class PackedFormatError(QatError):
    """Packed files are damaged, truncated, swapped, missing or of another version."""
