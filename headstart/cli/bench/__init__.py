"""`headstart bench`: measure, print, and keep the result."""

import typer

from headstart.cli.bench.capacity import capacity
from headstart.cli.bench.compare import compare
from headstart.cli.bench.engine import engine
from headstart.cli.bench.method import method
from headstart.cli.bench.ops import ops
from headstart.cli.bench.placement import placement
from headstart.cli.bench.quality import quality
from headstart.cli.bench.simulator import simulator
from headstart.cli.bench.train import train
from headstart.cli.bench_serve import serve

app = typer.Typer(help="Measure methods, this engine and others on this machine, side by side.", no_args_is_help=True)
app.command()(method)
app.command()(compare)
app.command()(engine)
app.command()(ops)
app.command()(serve)
app.command()(capacity)
app.command()(placement)
app.command()(simulator)
app.command()(quality)
app.command()(train)
