"""Images as users keep them: found, measured, put into buckets, packed into shards, turned into pixels."""
