"""The training core: documents in, trained weights out, in steps that a killed run repeats bit for bit."""
