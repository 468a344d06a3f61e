"""Every error that lakestore raises on purpose, grouped by what the caller does next.

LakestoreError
├── InvalidInputError (ValueError)    fix the call
│   └── SchemaError                   … or the batch, or the schema document
├── NotFoundError (KeyError)          it is not there
├── ClosedError                       open the lake again
├── LockedError                       somebody else holds it: wait, or open with mode="r"
├── ConflictError                     another writer won: reload, then decide
├── BackpressureError                 nothing was accepted: slow down, then retry
├── FormatTooNewError                 written by a newer lakestore: upgrade
├── StorageError                      disk or network: retry later
│   ├── UnsafeStoreError              the store cannot keep our promises: use another
│   └── CommitUncertainError          the commit may have happened: read back, then decide
└── CorruptionError                   bytes break a promise: stop, and look before going on

A message says what, where, and what to do; the driver's error is its `__cause__`.
"""


class LakestoreError(Exception):
    """Root of everything lakestore raises on purpose."""


class InvalidInputError(LakestoreError, ValueError):
    """The call cannot be right: fix its arguments."""


class SchemaError(InvalidInputError):
    """A batch does not fit its table's schema, or a schema document is wrong."""


class NotFoundError(LakestoreError, KeyError):
    """The lake, table, column or event asked for does not exist."""

    def __str__(self) -> str:
        """The message itself; `KeyError` would print its repr."""
        return str(self.args[0]) if self.args else ""


class ClosedError(LakestoreError):
    """The handle was closed, or was inherited by a forked process: open the lake again."""


class LockedError(LakestoreError):
    """Another process holds what this call needs."""


class ConflictError(LakestoreError):
    """Another writer won: reload, then decide."""


class BackpressureError(LakestoreError):
    """The buffer stayed full past the timeout; nothing of the batch was accepted."""


class FormatTooNewError(LakestoreError):
    """The lake was written by a newer lakestore; nothing was read or written."""


class StorageError(LakestoreError):
    """The disk or the network failed; what was not acknowledged may be retried."""


class UnsafeStoreError(StorageError):
    """The object store does not honour conditional writes, so it cannot keep our promises."""


class CommitUncertainError(StorageError):
    """A commit was sent and its answer lost; read back before deciding."""


class CorruptionError(LakestoreError):
    """Bytes break a promise; nothing was dropped, and nothing more is written over them."""
