"""The one exception that users are meant to read."""


class SpqError(Exception):
    """Bad input or a state that cannot be continued from.

    The message is one sentence that names what is wrong and what would be right. The command line
    prints it without a traceback and exits with status 1.
    """


class CheckpointError(SpqError):
    """A checkpoint of ours that is truncated, tampered with, or of an unknown version."""


class OutOfReach(SpqError):
    """A target that no choice meets; the message names one that is within reach."""
