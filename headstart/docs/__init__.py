"""The parts of the documentation that are rendered from code: cards, the ledger, and the formats of files."""
