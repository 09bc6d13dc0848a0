"""Read and write Hugging Face checkpoint directories."""
