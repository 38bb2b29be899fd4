"""Exams: how questions are put, which letters an answer chooses, accuracy."""
