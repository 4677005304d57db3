"""What is made for a key is made once, and kept apart from what other keys have."""

from __future__ import annotations

from hwmodel.option_cache import OptionCache


def test_makes_once_what_a_key_asks_for() -> None:
    made: list[str] = []

    def make(name: str) -> str:
        made.append(name)
        return name

    cache, other = OptionCache(), OptionCache()
    assert [cache.get(("kind", 1), lambda: make("one")) for _ in range(2)] == ["one", "one"]
    assert cache.get(("kind", 2), lambda: make("two")) == "two"
    assert other.get(("kind", 1), lambda: make("other")) == "other"
    assert made == ["one", "two", "other"]


def test_keeps_nothing_too() -> None:
    cache = OptionCache()
    assert cache.get("key", lambda: None) is None
    assert cache.get("key", lambda: 1) is None
