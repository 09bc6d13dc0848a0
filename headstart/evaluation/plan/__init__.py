"""What serving a model on a device costs: from its config, before anything is loaded."""
