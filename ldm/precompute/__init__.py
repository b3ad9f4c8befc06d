"""Results that are computed once, in shards and in units of work."""
