"""From a corpus name or a path to packed tokens: `corpora` → `clean` → `prepare` → `pack`."""
