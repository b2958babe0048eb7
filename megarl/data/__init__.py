"""Prompts: read, ordered, balanced over ranks; seeds of samples; demo tasks."""
