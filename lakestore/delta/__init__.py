"""The Delta log: what its actions say, how they are read, and how a version is added to it.

The protocol is https://github.com/delta-io/delta/blob/master/PROTOCOL.md. Reading and committing
are ours, because the commit is a promise of ours; data files are written elsewhere.
"""
