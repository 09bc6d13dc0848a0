"""Cached keys beyond the device: what comes back is what went, across evictions, restarts and damaged files."""

import asyncio
import logging
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart import AsyncEngine, SamplingParams
from headstart.checkpoints.reader import load_checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.cache import PagedKVStore
from headstart.engine.disk_tier import DiskTier
from headstart.engine.engine import Engine
from headstart.engine.seams import LayerKV
from headstart.engine.tiers import Tiers, TierSpec, fingerprint
from headstart.errors import HeadstartError

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
LAYERS = [LayerKV(1, 2, torch.float32), LayerKV(2, 3, torch.bfloat16), LayerKV(1, 2, torch.float32, alias_of=0)]


def run(model, tier, prompts, *, pages=24, salt=None, use=(), **settings):
    """Greedy tokens and cached prompt tokens of each prompt, one after another; and pages out and in."""
    engine = AsyncEngine.from_model(
        model, dtype="float32", num_pages=pages, max_model_len=150, kv_tier=tier, use=use, **settings
    )

    async def main():
        found = []
        for prompt in prompts:
            async for output in engine.generate(prompt, GREEDY, cache_salt=salt):
                last = output
            found.append((last.outputs[0].token_ids, last.num_cached_tokens))
        engine.engine.store.check()
        stats = engine.stats()
        assert stats.pages_free + stats.pages_cached == stats.pages_total
        await engine.shutdown()
        return (
            [tokens for tokens, _ in found],
            [cached for _, cached in found],
            (stats.tier_pages_out, stats.tier_pages_in),
        )

    return asyncio.run(main())


def prompts(count=6, seed=0):
    rng = random.Random(seed)
    return [[1, *(rng.randrange(100, 400) for _ in range(100))] for _ in range(count)]


def files(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.kv"))


@pytest.mark.parametrize("tier", ["cpu=10MB", "disk={}:10MB", "cpu=100KB,disk={}:10MB"])
def test_what_was_evicted_is_found_again(stories, tmp_path, tier):
    """A cache of 24 pages and prompts that take 42: without tiers nothing is found, with them everything."""
    twice = prompts() * 2
    want, missed, _ = run(stories, None, twice)
    assert missed == [0] * 12
    got, found, (out, back) = run(stories, tier.format(tmp_path), twice)
    assert got == want
    assert found == [0] * 6 + [96] * 6
    assert out > 0 and back >= 24


@pytest.mark.parametrize("tier", ["cpu=10MB", "disk={}:10MB"])
def test_no_step_brings_up_more_than_its_share(stories, tmp_path, monkeypatch, tier):
    """While a long prompt comes back from a tier, two pages a step, others go on."""
    engine = Engine(
        EngineArgs(
            stories, dtype="float32", page_size=16, num_pages=40, max_model_len=300, kv_tier=tier.format(tmp_path)
        )
    )
    assert isinstance(engine.store, PagedKVStore)
    monkeypatch.setattr("headstart.engine.cache._FETCH_BYTES", 2 * engine.store.bytes_per_page)
    long = [1, *(100 + i % 300 for i in range(250))]

    def answer(name, prompt):
        engine.submit(engine.prepare(name, prompt, GREEDY))
        brought, written, last = [], [], None
        while engine.has_work:
            before = engine.stats()
            for output in engine.step():
                if output.request_id == name:
                    last = output
            after = engine.stats()
            brought.append(after.tier_pages_in - before.tier_pages_in)
            written.append(after.generation_tokens - before.generation_tokens)
        engine.store.check()
        return last, brought, written

    first, _, _ = answer("first", long)
    for number, prompt in enumerate(prompts(8)):
        answer(str(number), prompt)
    beside = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    engine.submit(engine.prepare("beside", [1, 2, 3], beside))
    engine.step()
    again, brought, written = answer("again", long)
    assert again.outputs[0].token_ids == first.outputs[0].token_ids
    assert again.num_cached_tokens == 240 and sum(brought) == 15
    assert max(brought) == 2 and brought[:7] == [2] * 7
    assert all(written[:8]), "the other one writes meanwhile"
    engine.store.flush()


def test_the_disk_outlives_the_process_but_not_a_change_of_model_methods_or_tenant(stories, tmp_path):
    tier = f"disk={tmp_path}:10MB"
    want, _, _ = run(stories, tier, prompts(), salt="a")
    again, found, _ = run(stories, tier, prompts(), salt="a")
    assert again == want and found == [96] * 6
    for change in ({"salt": "b"}, {"salt": None}, {"salt": "a", "page_size": 8}):
        again, found, _ = run(stories, tier, prompts(2), **change)
        assert again == want[:2] and found == [0, 0], change
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())


def test_the_fingerprint_tells_any_single_weight(stories):
    layers = [LayerKV(4, 8, torch.float32)]
    cpu = torch.device("cpu")
    decoder = load_checkpoint(stories, "float32").decoder
    seen = {fingerprint(decoder, layers, 16, cpu)}
    assert fingerprint(load_checkpoint(stories, "float32").decoder, layers, 16, cpu) in seen
    generator = torch.Generator().manual_seed(0)
    for _, weight in decoder.named_parameters():
        at = tuple(int(torch.randint(size, (1,), generator=generator)) for size in weight.shape)
        with torch.no_grad():
            weight[at] += 0.01
        mark = fingerprint(decoder, layers, 16, cpu)
        assert mark not in seen
        seen.add(mark)
    assert fingerprint(decoder, layers, 8, cpu) not in seen
    assert fingerprint(decoder, [LayerKV(4, 8, torch.bfloat16)], 16, cpu) not in seen


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "swap", "magic", "directory"])
def test_damaged_and_foreign_files_are_ignored_with_a_warning(stories, tmp_path, caplog, damage):
    """Whatever stands in the files, the answers are right; files that are not ours stay as they are."""
    tier = f"disk={tmp_path}:10MB"
    want, _, _ = run(stories, tier, prompts())
    rng = random.Random(damage)
    written = files(tmp_path)
    assert written
    foreign = tmp_path / "notes.txt"
    foreign.write_text("mine")
    other = written[0].parent / "README"
    other.write_text("mine too")
    for path in rng.sample(written, len(written) // 2):
        data = bytearray(path.read_bytes())
        if damage == "flip":
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif damage == "truncate":
            data = data[: rng.randrange(len(data))]
        elif damage == "empty":
            data = bytearray()
        elif damage == "swap":
            data = bytearray(rng.choice([p for p in written if p.is_file() and p != path]).read_bytes())
        elif damage == "magic":
            data[:8] = b"\0" * 8
        path.unlink()
        path.mkdir() if damage == "directory" else path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        got, found, _ = run(stories, tier, prompts())
    assert got == want
    assert any(found) and not all(cached == 96 for cached in found)
    assert any("not its own" in record.message for record in caplog.records)
    if damage != "directory":
        assert any("corrupt" in record.message for record in caplog.records)
    assert foreign.read_text() == "mine" and other.read_text() == "mine too"


def test_the_disk_keeps_to_its_limit_and_forgets_the_oldest(tmp_path):
    page = 1000
    tier = DiskTier(tmp_path, 10 * (page + 56), "0" * 16, page)
    keys = [bytes([i]) * 24 for i in range(30)]
    for key in keys:
        tier.put(key, key[:1] * page)
    tier.flush([], 30)
    assert len(files(tmp_path)) == 10
    tier = DiskTier(tmp_path, 10 * (page + 56), "0" * 16, page)
    assert [tier.get(key) for key in keys] == [None] * 20 + [key[:1] * page for key in keys[20:]]
    tier.flush([], 30)
    tier = DiskTier(tmp_path, 4 * (page + 56), "1" * 16, page)
    assert len(files(tmp_path)) == 4, "another model's pages count too"
    tier.flush([], 30)


def test_a_process_that_is_killed_while_it_writes_leaves_whole_files(tmp_path):
    """Killed at a random moment, every file that bears a page's name holds one, and the rest is cleared away."""
    program = (
        "import sys, itertools; from pathlib import Path; from headstart.engine.disk_tier import DiskTier\n"
        "tier = DiskTier(Path(sys.argv[1]), 10**9, '0' * 16, 200_000); print('go', flush=True)\n"
        "for i in itertools.count(): tier.put(i.to_bytes(24, 'big'), i.to_bytes(8, 'big') * 25_000)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "go\n"
    deadline = time.monotonic() + 60
    while len(files(tmp_path)) < 20:
        assert time.monotonic() < deadline and child.poll() is None
    child.kill()
    child.communicate()
    stray = tmp_path / ("0" * 16) / "00" / f".{'0' * 48}.{child.pid}.tmp"
    stray.write_bytes(b"half")
    tier = DiskTier(tmp_path, 10**9, "0" * 16, 200_000)
    assert not list(tmp_path.rglob("*.tmp"))
    whole = files(tmp_path)
    assert len(whole) >= 20
    for path in whole:
        key = bytes.fromhex(path.stem)
        assert tier.get(key) == key[-8:] * 25_000
    tier.flush([], 30)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), pages=st.integers(4, 20), slots=st.integers(1, 30))
def test_random_leases_with_a_tier_find_only_what_was_written(seed, pages, slots):
    """Like the store's own test: each page's content is written by the test, and whatever a lease finds, from the
    device or from the tier, must be what stands for those tokens in that namespace."""
    rng = random.Random(seed)
    store = PagedKVStore().allocate(LAYERS, pages, 2)
    spec = TierSpec(cpu=slots * store.bytes_per_page)
    store.use_tiers(Tiers(spec, b"model", store.bytes_per_page))

    def content(namespace, tokens):
        return float(hash((namespace, tuple(tokens))) % 251)

    live = []
    for _ in range(60):
        if rng.random() < 0.6 or not live:
            namespace = rng.choice(["a", "b"])
            tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 2 * pages))]
            store.bring_up(namespace, tokens)
            lease = store.open(namespace, tokens)
            assert lease.num_cached < len(tokens)
            for i, page in enumerate(lease.pages):
                mark = content(namespace, tokens[: 2 * (i + 1)])
                for layer in range(3):
                    assert all((pool[page] == mark).all() for pool in store.layer(layer))
            if not lease.reserve(len(tokens)):
                lease.release()
                continue
            for i in range(lease.shared, len(tokens) // 2):
                for layer in range(3):
                    for pool in store.layer(layer):
                        pool[lease.pages[i]] = content(namespace, tokens[: 2 * (i + 1)])
            lease.commit(tokens, len(tokens))
            live.append(lease)
        else:
            live.pop(rng.randrange(len(live))).release()
        store.check()
    for lease in live:
        lease.release()
    store.check()
    assert store.num_available == pages


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cpu",
        "cpu=",
        "cpu=2XB",
        "cpu=-1GB",
        "disk=10GB",
        "disk=:1GB",
        "gpu=1GB",
        "cpu=1GB,cpu=1GB",
        "cpu=0MB",
        f"cpu={'9' * 400}",
    ],
)
def test_a_tier_that_cannot_be_is_refused(text):
    with pytest.raises(HeadstartError):
        TierSpec.parse(text)


def test_sizes_are_read_as_written(tmp_path):
    assert TierSpec.parse("cpu=1.5GB").cpu == 1_500_000_000
    assert TierSpec.parse(f"disk={tmp_path}:2GiB, cpu=3MiB") == TierSpec(3 * 2**20, (tmp_path, 2 * 2**30))


@pytest.mark.parametrize(
    ("tier", "said"),
    [
        ("cpu=99999TB", "give it less"),
        ("cpu=99999999999999TB", "give it less"),
        ("cpu=10", "at least [0-9]+"),
        ("disk={}:10", "at least [0-9]+"),
    ],
)
def test_a_size_that_cannot_be_had_is_refused_in_one_sentence(stories, tmp_path, tier, said):
    with pytest.raises(HeadstartError, match=said) as caught:
        AsyncEngine.from_model(stories, dtype="float32", num_pages=8, max_model_len=64, kv_tier=tier.format(tmp_path))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_emptied_while_it_is_used_fills_again(tmp_path):
    root = tmp_path / "above" / "kv"
    tier = DiskTier(root, 10**6, "0" * 16, 1000)
    first, second, third = (bytes([i]) * 24 for i in range(3))
    assert (root.stat().st_mode & 0o777, root.joinpath("0" * 16).stat().st_mode & 0o777) == (0o700, 0o700)

    def write(key):
        tier.put(key, key[:1] * 1000)
        deadline = time.monotonic() + 30
        while key in tier._waiting:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    write(first)
    shutil.rmtree(root)
    write(second)
    assert tier.get(first) is None and tier.get(second) == second[:1] * 1000
    shutil.rmtree(root / ("0" * 16))
    root.joinpath("0" * 16).write_text("a file where the model's directory was")
    write(third)
    assert tier.get(third) is None
    root.joinpath("0" * 16).unlink()
    write(third)
    assert tier.get(third) == third[:1] * 1000, "the writing thread lives on"
    tier.flush([], 30)
    assert len(files(root)) == 1


def test_what_an_earlier_process_of_the_same_id_left_unfinished_is_cleared(tmp_path):
    stray = tmp_path / ("0" * 16) / "00" / f".{'0' * 48}.{os.getpid()}.tmp"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"half")
    DiskTier(tmp_path, 10**6, "0" * 16, 1000).flush([], 30)
    assert not stray.exists()


def test_a_directory_that_cannot_be_used_is_said(stories, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(HeadstartError, match="choose another path"):
        AsyncEngine.from_model(stories, kv_tier=f"disk={blocked}/x:1GB")
    with pytest.raises(HeadstartError, match="switched off"):
        AsyncEngine.from_model(stories, kv_tier="cpu=1GB", enable_prefix_caching=False)
    assert os.listdir(tmp_path) == ["file"]
