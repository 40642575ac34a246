"""What the Hub's client raises, told apart."""

from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled


def is_connection_error(error: BaseException | None) -> bool:
    """Whether it is the HTTP client's own: which client that is, and so which class, changes with huggingface_hub."""
    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, LocalEntryNotFoundError):  # a download that found neither server nor cache
        return True
    if isinstance(error, RuntimeError) and "client has been closed" in str(error):  # by another thread that found no server
        return True
    module = type(error).__module__.split(".")[0]
    return module in ("httpx", "httpx2", "httpcore", "httpcore2", "requests") or isinstance(
        error, ConnectionError | TimeoutError
    )
