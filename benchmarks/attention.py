"""Attention on this machine's GPU: errors, times beside cuDNN's and flash's, and the best shapes of the Triton kernel.

    python benchmarks/attention.py --out attention.json            # everything, in under two minutes
    python benchmarks/attention.py --only decode --no-sweep        # with the usual shapes only

Every figure is printed as it comes; the table at the end has the best of each piece of work.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from headstart.evaluation.attention_bench import (
    CASES,
    Row,
    Work,
    prepare,
    shapes_of,
    time_bare,
    time_new_shape,
    time_path,
    time_shape,
)

CHUNKS = [
    Work(1, 8192, 8192),
    Work(1, 32768, 32768),
    Work(1, 8192, 32768),
    Work(1, 8192, 32768, 16, True),
    Work(1, 8192, 32768, 128, True),
]
DECODES = [
    Work(sequences, 1, keys, page_size, True)
    for sequences, keys, page_size in ((64, 4096, 16), (64, 4096, 128), (256, 1024, 16), (1, 4096, 16), (1, 4096, 128))
]
OTHERS = [Work(1, 2048, 2048), Work(1, 131072, 131072), Work(1, 1, 131072, 16, True), Work(64, 4, 4096, 16, True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file for all rows")
    parser.add_argument("--only", choices=["errors", "library", "chunks", "decode"], action="append")
    parser.add_argument("--no-sweep", action="store_true", help="take the usual shapes only")
    parser.add_argument("--best", type=int, default=3, help="how many shapes of each piece of work to show")
    args = parser.parse_args()
    parts = args.only or ["errors", "library", "chunks", "decode"]
    rows: list[Row] = []
    begun = time.perf_counter()

    def note(measure: Callable[[], Row | list[Row]], what: str) -> None:
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
    swept = [] if args.no_sweep else CHUNKS * ("chunks" in parts) + DECODES * ("decode" in parts)
    if swept or "errors" in parts:
        note(lambda: prepare(swept, CASES * ("errors" in parts)), "errors and compilation")
    if "library" in parts:
        for rows_ in (5000, 5120, 30000):
            note(lambda rows_=rows_: time_new_shape("cudnn", rows_), "new shape")
        for work in (*CHUNKS[:2], *OTHERS[:2]):
            for name in ("cudnn", "flash"):
                note(lambda work=work, name=name: time_bare(work, name), str(work))
        for work in CHUNKS:
            note(lambda work=work: time_path(work, "cudnn"), str(work))
    for works, part in ((CHUNKS, "chunks"), (DECODES, "decode")):
        for work in works * (part in parts):
            for shape in [None, *(shapes_of(work) if swept else [])]:
                note(lambda work=work, shape=shape: time_shape(work, shape), f"{work} in {shape}")
    for work in OTHERS:
        if ("decode" if work.rows <= 16 else "chunks") in parts:
            note(lambda work=work: time_shape(work, None), str(work))
    _summary(rows, args.best)


def _line(row: Row) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" if name != "work" else str(value)
        for name, value in row.items()
        if value is not None
    )


def _summary(rows: list[Row], best: int) -> None:
    """Per piece of work the usual shape, the others' paths and the best few shapes; then the worst errors."""
    print("\n=== best of each")
    works: dict[str, list[Row]] = {}
    for row in rows:
        if "ms" in row:
            works.setdefault(row["work"], []).append(row)
    for work, found in works.items():
        print(work)
        usual = [row for row in found if row.get("shape") is None]
        tried = sorted((row for row in found if row.get("shape") is not None), key=lambda row: row["ms"])
        for row in usual + tried[:best]:
            figures = f"{row['tflops']:6.0f} TFLOP/s {row['tb_per_s']:5.2f} TB/s" if "tflops" in row else ""
            again = f"again {row['again_ms']:.2f} ms" if "again_ms" in row else ""
            print(f"    {row['ms']:9.4f} ms {figures}{again}  {row['path']} {row.get('shape') or ''}")
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
