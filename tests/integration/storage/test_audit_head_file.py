"""The file of heads: several writers, interrupted writes, and its size."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from integration_server.service.audit.audit_heads import AUDIT_CHAIN, Head, encode_head
from integration_server.storage.audit_head_file import HeadFile, read_heads

TIME = "2026-11-29T12:00:00+00:00"


def head(chain: int, version: int, mac: bytes = b"\x01" * 32, kind: str = AUDIT_CHAIN) -> Head:
    return Head(kind, f"c-{chain}", chain, version, mac)


def lines(*heads: Head) -> list[bytes]:
    return [encode_head(recorded, TIME) for recorded in heads]


async def test_lines_are_appended_to_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "heads"
    for version in (1, 2):
        await HeadFile(path).append(lines(head(1, version)))
    assert path.read_bytes() == b"".join(lines(head(1, 1), head(1, 2)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_concurrent_writers_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "heads"
    await asyncio.gather(*(HeadFile(path).append(lines(head(chain, chain))) for chain in range(1, 9)))
    recorded = read_heads(path)
    assert not recorded.unreadable_lines
    assert sorted(recorded.chain_ids) == sorted(f"c-{chain}" for chain in range(1, 9))


async def test_the_newest_heads_are_read_and_contradicting_ones_kept(tmp_path: Path) -> None:
    path = tmp_path / "heads"
    other = head(1, 3, b"\x02" * 32)
    written = lines(head(1, 1), head(1, 3), head(1, 2), other, head(2, 1), head(1, 9, kind="data_keys"))
    path.write_bytes(b"".join(written))
    recorded = read_heads(path)
    assert recorded.of_chain("c-1") == {head(1, 3), other}
    assert recorded.of_chain("c-2") == {head(2, 1)}
    assert recorded.of_chain("c-3") == frozenset()
    assert recorded.chain_ids == ["c-1", "c-2"]


@pytest.mark.parametrize("torn", [b'{"kind": "audit_ch', b"\x00\x00\x00", b"{"])
async def test_an_interrupted_write_spoils_only_its_own_line(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "heads"
    path.write_bytes(lines(head(1, 1))[0] + torn)
    await HeadFile(path).append(lines(head(1, 2)))
    recorded = read_heads(path)
    assert recorded.of_chain("c-1") == {head(1, 2)}
    assert recorded.unreadable_lines == [2]


def names_in(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}


async def test_a_large_file_is_replaced_by_its_newest_heads(tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.symlink_to("heads")
    file = HeadFile(path, max_bytes=2_000)
    contradicting = head(2, 1, b"\x02" * 32)
    await file.append(lines(head(2, 1), contradicting))
    for version in range(1, 31):
        await file.append(lines(head(1, version)))
        assert path.stat().st_size < 2_500
    recorded = read_heads(path)
    assert recorded.of_chain("c-1") == {head(1, 30)}
    assert recorded.of_chain("c-2") == {head(2, 1), contradicting}
    assert path.is_symlink()
    assert names_in(tmp_path) == {"heads", "link"}


async def test_writers_that_wait_while_the_file_is_replaced_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "heads"
    await asyncio.gather(*(HeadFile(path, max_bytes=400).append(lines(head(chain, 1))) for chain in range(1, 9)))
    assert len(read_heads(path).chain_ids) == 8


async def test_a_path_that_is_no_file_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "absent" / "heads", tmp_path / "fifo"):
        with pytest.raises(OSError, match=r".*"):
            await HeadFile(path).append(lines(head(1, 1)))
