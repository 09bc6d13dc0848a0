"""Attention on this machine's GPU: errors, and times beside cuDNN's, flash's and FlexAttention's, in about a minute.

    python benchmarks/attention.py --out attention.json

Every figure is printed as it comes; a table of all stands at the end. FlexAttention is compiled last, and only where
`--seconds` leave time for it.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from headstart.evaluation.attention_bench import (
    BACKWARD_TILES,
    CASES,
    PREFILL_SHAPES,
    Row,
    Work,
    prepare,
    time_backward,
    time_bare,
    time_flex,
    time_path,
    time_shape,
)

WHOLE = [Work(1, length, length, 64) for length in (8192, 32768, 131072)]
CHUNKS = [Work(1, 8192, 32768, 64), Work(1, 8192, 32768, 64, True)]
DECODES = [Work(sequences, 1, keys, 64, True) for sequences, keys in ((64, 4096), (256, 1024), (1, 4096))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file for all rows")
    parser.add_argument("--seconds", type=float, default=45, help="FlexAttention is left out later than this")
    args = parser.parse_args()
    rows: list[Row] = []
    begun = time.perf_counter()

    def note(what: str, measure: Callable[[], Row | list[Row]]) -> None:
        """Measure, print and keep; what fails is said and does not end the run."""
        try:
            found = measure()
        except Exception as error:
            found = {"work": what, "failed": f"{type(error).__name__}: {str(error)[:300]}"}
        for row in found if isinstance(found, list) else [found]:
            rows.append(row)
            print(f"[{time.perf_counter() - begun:5.1f} s] {_line(row)}", flush=True)
        if args.out is not None:
            args.out.write_text(json.dumps({"device": torch.cuda.get_device_name(), "rows": rows}, indent=1))

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    tried = [(work, shape) for work in WHOLE[:2] for shape in PREFILL_SHAPES]
    usual = [(work, None) for work in (*WHOLE, *CHUNKS, *DECODES)]
    note("errors and compilation", lambda: prepare([*tried, *usual], CASES))
    for work in WHOLE:
        for name in ("cudnn", "flash"):
            note(str(work), lambda work=work, name=name: time_bare(work, name))
    for work in (*WHOLE, *CHUNKS):
        note(str(work), lambda work=work: time_path(work, "cudnn"))
    for work, shape in (*usual, *tried):
        note(f"{work} in {shape}", lambda work=work, shape=shape: time_shape(work, shape))
    for tiles in (None, *BACKWARD_TILES):
        note(f"backward in {tiles}", lambda tiles=tiles: time_backward(WHOLE[0].rows, tiles))
    for work in WHOLE[:2]:
        if time.perf_counter() - begun < args.seconds:
            note(f"flex, {work}", lambda work=work: time_flex(work.rows))
    _summary(rows)


def _line(row: Row) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" if name != "work" else str(value)
        for name, value in row.items()
        if value is not None
    )


def _summary(rows: list[Row]) -> None:
    """Per piece of work all paths and shapes, the fastest first; then the worst errors."""
    print("\n=== by work")
    works: dict[str, list[Row]] = {}
    for row in rows:
        if "ms" in row:
            works.setdefault(row["work"], []).append(row)
    for work, found in works.items():
        print(work)
        for row in sorted(found, key=lambda row: row["ms"]):
            rates = f"{row['tflops']:5.0f} TFLOP/s {row['tb_per_s']:5.2f} TB/s"
            print(f"    {row['ms']:9.4f} ms {rates}  {row['path']} {row.get('shape') or ''}")
    errors = [row for row in rows if "error" in row]
    for path in sorted({row["path"] for row in errors}):
        mine = [row for row in errors if row["path"] == path]
        ratios = [row["over_sdpa"] for row in mine if row["over_sdpa"] is not None]
        print(
            f"{path}: relative error at most {max(row['error'] for row in mine):.2e}, at most {max(ratios):.2f} times "
            f"SDPA's, all written: {all(row['finite'] for row in mine)}"
        )
    for row in rows:
        if "failed" in row:
            print("FAILED", _line(row))


if __name__ == "__main__":
    main()
