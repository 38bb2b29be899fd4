"""Comparisons from judge, humans and rubric; the preference store."""
