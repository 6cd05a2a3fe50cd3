"""What the command shows: results, endings, and what it keeps quiet about."""
