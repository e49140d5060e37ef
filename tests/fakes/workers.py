"""What tests see of background workers."""

from integration_server.service.background.background_worker import BackgroundWorker


def is_busy(worker: BackgroundWorker) -> bool:
    """Whether a handler is running."""
    return bool(worker._running)
