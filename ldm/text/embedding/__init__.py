"""Every caption encoded to token states once, and stored in shards."""
