"""From files to packed rows of tokens: reading, cleaning, tokenising, storing, mixing, packing."""
