"""Results that are computed once and kept: caches in shards, and units of work."""
