"""Verbs chained: the only place where one verb calls another; a file a command."""
