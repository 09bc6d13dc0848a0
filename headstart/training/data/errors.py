"""What goes wrong because of training data."""

from headstart.errors import HeadstartError


class DataError(HeadstartError):
    """Training data that cannot be read, prepared or written. The message is one sentence."""
