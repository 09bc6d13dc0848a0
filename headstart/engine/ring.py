"""Pages of the heads that keep only what their reach sees, as twins of the pages that every layer counts by."""

from collections.abc import Sequence as Seq

import numpy as np
from numpy.typing import NDArray

from headstart.errors import MethodError
from headstart.ops.attention import RaggedLayout
from headstart.ops.attention.reach import Reach


class TwinPages:
    """Which pages have a **twin**: a page of the second pool, in which the bounded heads keep the same tokens.

    A lease holds the twins that later tokens see and lets the others go. A twin that nobody holds stays for reuse while
    its page is cached, until its place is wanted, oldest first.

    Args:
        reach: what is seen.
        num_pages: pages that may have a twin.
        num_twins: pages of the second pool.
        page_size: tokens per page.

    Raises:
        MethodError: the reach's blocks are no whole pages.
    """

    def __init__(self, reach: Reach, num_pages: int, num_twins: int, page_size: int) -> None:
        if reach.block % page_size:
            raise MethodError(
                f"blocks of {reach.block} tokens are not made of whole pages of {page_size}: set page_size to a "
                f"divisor of {reach.block}"
            )
        self.reach, self.page_size, self.num_twins = reach, page_size, num_twins
        self.twins: NDArray[np.int32] = np.full(num_pages, -1, dtype=np.int32)
        self._holders = np.zeros(num_pages, dtype=np.int32)
        self._free = list(range(num_twins - 1, -1, -1))
        self._idle: dict[int, None] = {}

    @property
    def num_held(self) -> int:
        """Twins that somebody holds."""
        return self.num_twins - len(self._free) - len(self._idle)

    def take(self, pages: Seq[int]) -> bool:
        """Give pages without a twin one each, and hold them; False, with nothing changed, where there is no room."""
        if len(pages) > len(self._free) + len(self._idle):
            return False
        for page in pages:
            if not self._free:
                self.forget([next(iter(self._idle))])
            self.twins[page] = self._free.pop()
            self._holders[page] = 1
        return True

    def hold(self, pages: Seq[int]) -> None:
        """Hold the twins that these pages have."""
        for page in pages:
            assert self.twins[page] >= 0, "a twin is held that is gone"
            self._holders[page] += 1
            self._idle.pop(page, None)

    def let_go(self, pages: Seq[int]) -> None:
        """Hold them no longer; the last of them are the first to go, since every prompt that begins alike sees the
        first."""
        for page in reversed(pages):
            self._holders[page] -= 1
            if not self._holders[page]:
                self._idle[page] = None

    def forget(self, pages: Seq[int]) -> None:
        """Free the twins of pages that hold something else from now on, and that nobody holds."""
        for page in pages:
            if self.twins[page] >= 0:
                assert not self._holders[page], "a twin was freed that is held"
                self._idle.pop(page, None)
                self._free.append(int(self.twins[page]))
                self.twins[page] = -1

    def hand_over(self, mine: int, its: int, held: bool) -> None:
        """A page gives way to another with the same tokens, which takes its twin where it has none.

        Args:
            mine: the page that goes.
            its: the one that stays.
            held: whether the caller holds the twin of `mine`; it holds that of `its` then.
        """
        if held:
            self.let_go([mine])
        if self.twins[its] < 0 <= self.twins[mine]:
            self._idle.pop(mine, None)
            self.twins[its], self.twins[mine] = self.twins[mine], -1
            self._idle[its] = None
        if held:
            self.hold([its])

    def reusable(self, pages: Seq[int]) -> int:
        """How many of these first pages of a sequence can stand, so that what comes next finds all that it sees."""
        there = self.twins[np.array(pages, dtype=np.int64)] >= 0
        count = len(pages)
        while count and not there[(seen := self.kept(count * self.page_size))[seen < count]].all():
            count -= 1
        return count

    def kept(self, computed: int) -> NDArray[np.int64]:
        """The numbers of the pages that the token at this place sees."""
        return self.reach.pages(computed, computed, self.page_size)

    def within(self, layout: RaggedLayout) -> RaggedLayout:
        """Where the bounded heads' keys lie: every block of rows as a sequence of its own, over what it sees."""
        queries, lengths, tables = [], [], []
        block, size = self.reach.block, self.page_size
        for count, end, table in zip(layout.query_lengths, layout.kv_lengths, layout.page_tables, strict=True):
            pages = np.fromiter(table, dtype=np.int64, count=-(-end // size))
            first = end - count
            while first < end:
                last = end - 1 if self.reach.whole(end) else min(end, (first // block + 1) * block) - 1
                seen = self.reach.pages(first, last, size)
                queries.append(last + 1 - first)
                lengths.append((len(seen) - 1) * size + last % size + 1)
                tables.append(self.twins[pages[seen]].tolist())
                first = last + 1
        return RaggedLayout(queries, lengths, tables, size, layout.device)

    def check(self, held: Seq[Seq[int]]) -> None:
        """Raise AssertionError unless every twin is in one place; `held` are the pages whose twins each lease holds."""
        used = self.twins[self.twins >= 0].tolist()
        assert sorted(used + self._free) == list(range(self.num_twins)), "a twin was lost or given twice"
        counts = np.bincount(
            np.array([page for each in held for page in each], dtype=np.int64), minlength=len(self.twins)
        )
        assert (counts == self._holders).all(), "a twin's holders are miscounted"
        idle = np.flatnonzero((self.twins >= 0) & (self._holders == 0)).tolist()
        assert sorted(self._idle) == idle, "an idle twin is not known, or one that is held is"
