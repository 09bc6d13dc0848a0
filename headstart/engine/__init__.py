"""The inference core. Read in order: request, batch, cache, scheduler, runner, sampler, engine."""
