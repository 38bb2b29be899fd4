"""What a model is worth, from records to numbers, tables and pages; asks no model itself."""
