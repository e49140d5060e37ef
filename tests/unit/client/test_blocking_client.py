"""The client for threads is generated from the one for asyncio."""

from tools.blocking_client import SOURCE, TARGET, blocking


def test_it_is_up_to_date() -> None:
    """`make blocking-client` writes it."""
    assert TARGET.read_text() == blocking(SOURCE.read_text())


def test_nothing_of_asyncio_is_left() -> None:
    """A word that the table lacks would be left in the generated file."""
    assert not [
        word for word in ("async", "await", "Async", "aiter", "anext") if word in blocking(SOURCE.read_text())[200:]
    ]
