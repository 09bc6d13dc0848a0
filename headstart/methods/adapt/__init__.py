"""Methods that fit a trained model to a task or a setting."""
