"""Typed configuration: one YAML a stage, validated before anything starts."""
