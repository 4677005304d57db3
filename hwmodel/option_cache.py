"""What configurations of one network have in common on one device family: made by the first that asks for it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

Made = TypeVar("Made")


class OptionCache:
    """What earlier configurations left: valid for one network, device family, set of places and space."""

    def __init__(self) -> None:
        self._made: dict[Hashable, object] = {}

    def get(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What is there under a key, made if nothing is.

        Args:
            key: All that the result depends on beside what the cache is valid for; its kind comes first.
            make: Makes the result.
        """
        try:
            return cast(Made, self._made[key])
        except KeyError:
            pass
        made = self._made[key] = make()
        return made
