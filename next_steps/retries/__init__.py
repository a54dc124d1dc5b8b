"""What a handler takes from this step: its way to say that an order can never succeed."""


class NotRetriableError(Exception):
    """Raised by a handler on purpose: this order would fail at each further attempt, so it becomes a dead letter."""
