"""A progress bar, if tqdm is there. A run goes on without one that cannot write."""

from __future__ import annotations

from typing import Any


class Bar:
    """A bar of tqdm, or nothing: for progress=False, without tqdm, and from the moment it fails."""

    def __init__(self, progress: bool | None, total: int | None):
        self.bar: Any = None
        if progress is False:
            return
        try:
            from tqdm.auto import tqdm
        except ImportError:
            if progress:
                raise ImportError("fit: progress=True needs tqdm; run: pip install tqdm") from None
            return
        self._try(lambda: setattr(self, "bar", tqdm(total=total, unit="step", dynamic_ncols=True)))

    def update(self, n: int, numbers: dict[str, str]) -> None:
        """n steps more, with these numbers beside them."""
        if self.bar is not None:
            self._try(lambda: (self.bar.set_postfix(numbers, refresh=False), self.bar.update(n)))

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self._try(self.bar.close)

    def _try(self, write: Any) -> None:
        try:
            write()
        except (OSError, ValueError):  # a full disk; a closed terminal or stream
            if self.bar is not None:
                self.bar.disable = True  # nor shall it try again when it is collected
            self.bar = None
