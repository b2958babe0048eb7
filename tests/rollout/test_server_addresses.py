"""Addresses of rollout servers: what is taken, what is refused, and what no message says."""

from __future__ import annotations

import pytest

from megarl.errors import ConfigError
from megarl.rollout.servers.address import parse_addresses
from megarl.runtime.environment import SERVER_KEY


def test_both_ways_to_write_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVER_KEY, raising=False)
    found = parse_addresses(["http://127.0.0.1:8000", "http://localhost:8001/v1/"])
    assert [one.url for one in found] == ["http://127.0.0.1:8000", "http://localhost:8001"]
    assert [one.name for one in found] == ["server 0", "server 1"]
    assert all(one.headers == {} for one in found)


WRONG = {
    "none": ([], r"rollout.servers is empty"),
    "no scheme": (["127.0.0.1:8000"], r"rollout.servers\[0\] cannot be read"),
    "no port": (["http://localhost"], r"rollout.servers\[0\] cannot be read"),
    "a port of letters": (["http://localhost:http"], r"cannot be read"),
    "a path": (["http://localhost:1/v1/completions"], r"nothing behind it"),
    "a password": (["http://me:secret@localhost:1"], r"cannot be read"),
    "not text": ([8000], r"cannot be read"),
    "twice": (["http://localhost:1", "http://localhost:1/v1"], r"rollout.servers\[1\] is the same"),
    "far away": (["http://10.0.0.7:8000"], r"MEGARL_SERVER_API_KEY is not set"),
}


@pytest.mark.parametrize(("urls", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_refused(urls: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVER_KEY, raising=False)
    with pytest.raises(ConfigError, match=message) as caught:
        parse_addresses(urls)
    for part in ("10.0.0.7", "secret"):
        assert part not in str(caught.value)


def test_a_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVER_KEY, "hush")
    (found,) = parse_addresses(["http://10.0.0.7:8000"])
    assert found.headers == {"Authorization": "Bearer hush"}
    assert "hush" not in repr(found) and "10.0.0.7" not in repr(found)
