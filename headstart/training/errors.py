"""What can go wrong in training."""

from headstart.errors import HeadstartError


class TrainingError(HeadstartError):
    """A recipe, a run or a checkpoint of a run that cannot go on as asked."""
