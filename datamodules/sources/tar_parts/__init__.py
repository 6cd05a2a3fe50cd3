"""What a record of a tar shard is made of: where its members lie, and what they hold."""
