"""Several engines as one: replicas behind a router, or prefill and decode apart."""
