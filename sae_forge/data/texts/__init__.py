"""Text and records: from a source named in one string to documents, and to packed tokens; it knows no shard."""
