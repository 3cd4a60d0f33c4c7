"""Public names that import their module on first use, so that ``import ms_gpt`` costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable


def attach(package: str, names: dict[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Build ``__getattr__``, ``__dir__`` and ``__all__`` for a package's ``__init__``.

    Args:
        package: The package's ``__name__``.
        names: Public name to the submodule (relative to the package) that defines it; ``"submodule:Name"`` where it
            has another name there.

    Returns:
        The three module attributes, in that order.
    """

    def __getattr__(name: str) -> object:  # noqa: N807 - PEP 562 fixes the name
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, original = names[name].partition(":")
        return getattr(importlib.import_module(f"{package}.{module}"), original or name)

    def __dir__() -> list[str]:  # noqa: N807 - PEP 562 fixes the name
        return sorted(names)

    return __getattr__, __dir__, sorted(names)
