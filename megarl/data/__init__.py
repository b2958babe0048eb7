"""Prompts, texts, preferences, corpora: read, ordered, balanced over ranks; demo tasks."""
